"""An encoder whose features are the pixels' means, so that tests know them."""

import torch
from torch import nn

from webssl_fast.records import Features, Preprocessing


class PixelEncoder(nn.Module):
    """Block b gives (b + 1) times each patch's mean colour, plus 10 after the norm; the class token is their mean."""

    name, patch_size, width, num_blocks, image_size_px, cls_source = "pixels", 4, 3, 4, 32, "patch_mean"
    preprocessing = Preprocessing(resize_px=32, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def forward(self, images_B3HW):
        return self.block_features(images_B3HW, [3])[0]

    def block_features(self, images_B3HW, blocks, *, final_norm=True):
        assert not torch.is_grad_enabled()
        patches_BND = nn.functional.avg_pool2d(images_B3HW, self.patch_size).flatten(2).mT
        outputs = [(block + 1) * patches_BND + 10 * final_norm for block in blocks]
        return [Features(output.mean(1), output) for output in outputs]
