import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="package")
def photos(tmp_path_factory):
    """Labelled images, a folder a class: 8 to train on and 4 to test on, of two colours."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, color in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(color) + rng.normal(0, 30, (60, 70, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.jpg")
    return folder
