"""All 16 benchmarks in their published layouts, with a few rows each and real images: `write_tiny_benchmarks(folder)`.

`truthful` answers each question as its truth asks; `constant` answers all alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from webssl_fast.evals.vqa.general import COGNITION, PERCEPTION
from webssl_fast.evals.vqa.question import Answerer, Question

# Numbers of questions that are asked, of the rows that are written.
NUM_QUESTIONS = {
    "mme": 28, "mmbench": 6, "seed": 3, "gqa": 3,
    "scienceqa": 3, "mmmu": 4, "mathvista": 3, "ai2d": 3,
    "chartqa": 4, "ocrbench": 3, "textvqa": 2, "docvqa": 3,
    "mmvp": 4, "realworldqa": 3, "cv_bench_2d": 3, "cv_bench_3d": 2,
}  # fmt: skip

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rendered(text: str, size_px: tuple[int, int] = (160, 96)) -> Image.Image:
    """Text on a coloured ground, which differs from text to text."""
    hue = sum(text.encode()) * 37
    image = Image.new("RGB", size_px, (120 + hue % 130, 120 + hue // 3 % 130, 120 + hue // 7 % 130))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 56, 40, 88), fill=(hue % 255, 40, 90))
    draw.multiline_text((8, 6), text, fill="black", font=ImageFont.load_default(size=18))
    return image


def encoded(text: str) -> dict[str, Any]:
    """A cell of an image column."""
    file = io.BytesIO()
    rendered(text).save(file, "png")
    return {"bytes": file.getvalue(), "path": f"{text[:8]}.png"}


def write_rows(path: Path, rows: Sequence[dict[str, Any]], images: Sequence[str] = ("image",)) -> None:
    """Parquet as on the Hugging Face hub; two rows to a row group, so that several are read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {name: [row[name] for row in rows] for name in rows[0] if name not in images}
    columns = {name: pa.array(values) for name, values in table.items()}
    columns |= {name: pa.array([row[name] for row in rows], IMAGE_TYPE) for name in images if name in rows[0]}
    pq.write_table(pa.table(columns), path, row_group_size=2)


def write_tiny_benchmarks(folder: Path) -> Path:
    """Writes a folder for `benchmarks.root`; returns it."""
    for write in (*GENERAL, *KNOWLEDGE, *OCR_AND_CHART, *VISION_CENTRIC):
        write(folder)
    return folder


def truthful(questions: Sequence[Question]) -> Iterator[str]:
    for question in questions:
        yield question.truth["answers"][0] if "answers" in question.truth else question.truth["answer"]


def constant(answer: str) -> Answerer:
    return lambda questions: [answer for _ in questions]


# ---------------------------------------------------------------- general


def write_mme(root: Path) -> None:
    rows = [
        {"question_id": f"{category}/1.png", "image": encoded(category), "question": question, "category": category,
         "answer": answer}
        for category in PERCEPTION + COGNITION
        for question, answer in (("Is there a circle in this image?", "Yes"), ("Is there a square?", "No"))
    ]  # fmt: skip
    write_rows(root / "mme/data/test-00000-of-00002-a.parquet", rows[:20])
    write_rows(root / "mme/data/test-00001-of-00002-b.parquet", rows[20:])


def write_mmbench(root: Path) -> None:
    def rotations(index: int, question: str, hint: str, options: list[str]) -> Iterator[dict[str, Any]]:
        for shift in range(len(options)):
            turned = options[shift:] + options[:shift]
            letters = dict(zip("ABCD", turned + ["nan"] * (4 - len(options)), strict=True))
            yield {
                "index": index + 1_000_000 * shift, "question": question, "hint": hint, **letters,
                "answer": "ABCD"[turned.index(options[0])], "category": "ocr", "l2-category": "perception",
                "image": encoded(options[0]), "source": "tiny",
            }  # fmt: skip

    rows = [
        *rotations(7, "Which word is written?", "nan", ["lamp", "bread", "river", "cloud"]),
        *rotations(8, "Is it day?", "Look at the sky.", ["day", "night"]),
    ]
    write_rows(root / "mmbench/data/dev-00000-of-00001.parquet", rows)


def write_seed(root: Path) -> None:
    path = root / "seed/data/test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [[encoded("red")], [encoded("one"), encoded("two")], [encoded("blue")], [encoded("green")]]
    columns = {
        "question": [f"What is shown in {i}?" for i in range(4)],
        **{f"choice_{c}": [f"{c}{i}" for i in range(4)] for c in "abcd"},
        "answer": ["A", "B", "C", "D"],
        "question_type_id": [1, 10, 5, 9],
        "image": pa.array(images, pa.list_(IMAGE_TYPE)),
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)


def write_gqa(root: Path) -> None:
    asked = [("n1", "Is the cup red?", "yes"), ("n2", "What is it?", "Table"), ("n1", "What color is it?", "red")]
    rows = [
        {"imageId": image, "question": question, "answer": answer, "fullAnswer": f"It is {answer}.", "types": "{}"}
        for image, question, answer in asked
    ]
    write_rows(root / "gqa/testdev_balanced_instructions/testdev-00000-of-00001.parquet", rows)
    images = [{"id": name, "image": encoded(name)} for name in ("n2", "n1")]
    write_rows(root / "gqa/testdev_balanced_images/testdev-00000-of-00001.parquet", images)


# ---------------------------------------------------------------- knowledge


def write_scienceqa(root: Path) -> None:
    rows = [
        {"image": encoded("magnet"), "question": "Do they attract?", "hint": "Two magnets.", "answer": 1,
         "choices": ["They repel.", "They attract."], "grade": "grade3"},
        {"image": None, "question": "Which is it?", "hint": "", "choices": ["x", "y"], "answer": 0, "grade": "grade2"},
        {"image": encoded("map"), "question": "Which is north?", "hint": "", "choices": ["Ohio", "Maine", "Utah"],
         "answer": 1, "grade": "grade2"},
        {"image": encoded("fern"), "question": "What is it?", "hint": "", "choices": ["fern", "moss", "pine", "oak"],
         "answer": 0, "grade": "grade7"},
    ]  # fmt: skip
    write_rows(root / "scienceqa/data/test-00000-of-00001-a.parquet", rows)


def write_mmmu(root: Path) -> None:
    def row(number: int, question: str, options: str, kind: str, answer: str) -> dict[str, Any]:
        images = {f"image_{i}": encoded(f"{number}.{i}") if i <= 1 + number % 2 else None for i in range(1, 8)}
        name = f"validation_Art_{number}"
        return {"id": name, "question": question, "options": options, "question_type": kind, "answer": answer} | images

    rows = [
        row(1, "<image 1> Which style is it?", "['Cubism', 'Baroque', 'Gothic']", "multiple-choice", "B"),
        row(2, "Whose law is in <image 1>?", "[\"Ohm's law\", 'Snell', 'Hooke']", "multiple-choice", "A"),
        row(3, "What is the sum in <image 1> and <image 2>?", "[]", "open", "12.5"),
        row(4, "Name it: <image 1>", "[]", "open", "Andante"),
    ]
    write_rows(root / "mmmu/data/validation-00000-of-00001.parquet", rows, images=[f"image_{i}" for i in range(1, 8)])


def write_mathvista(root: Path) -> None:
    def row(query: str, choices: list[str] | None, answer: str) -> dict[str, Any]:
        kind = "multi_choice" if choices else "free_form"
        return {"query": query, "question_type": kind, "choices": choices, "answer": answer, "metadata": {"grade": "x"},
                "decoded_image": encoded(answer)}  # fmt: skip

    rows = [
        row("Question: Which is larger?\nChoices:\n(A) left\n(B) right", ["left", "right"], "right"),
        row("Question: How many are there?", None, "12"),
        row("Question: What is x?", None, "0.25"),
    ]
    write_rows(root / "mathvista/data/testmini-00000-of-00001-a.parquet", rows, images=["decoded_image"])


def write_ai2d(root: Path) -> None:
    rows = [
        {"question": f"Which part is {i}?", "options": ["leaf", "root", "stem", "seed"], "answer": str(i),
         "image": encoded(f"part {i}")}
        for i in (2, 0, 3)
    ]  # fmt: skip
    write_rows(root / "ai2d/data/test-00000-of-00001.parquet", rows)


# ---------------------------------------------------------------- ocr and chart


def write_chartqa(root: Path) -> None:
    asked = [("How many in 2010?", "40"), ("Which is largest?", "Blue"), ("What share?", "12%"), ("What mean?", "-2.5")]
    rows = [
        {"type": f"{'human' if i < 2 else 'augmented'}_test", "question": question, "answer": answer,
         "image": encoded(f"chart {answer}")}
        for i, (question, answer) in enumerate(asked)
    ]  # fmt: skip
    write_rows(root / "chartqa/data/test-00000-of-00001.parquet", rows)


def write_ocrbench(root: Path) -> None:
    asked = [
        ("Regular Text Recognition", ["CENTRE"]),
        ("Handwritten Mathematical Expression Recognition", ["x ^ { 2 } + Y"]),
        ("Scene Text-centric VQA", ["exit 12", "12"]),
    ]
    rows = [
        {"dataset": "tiny", "question": "what is written in the image?", "question_type": kind, "answer": answer,
         "image": encoded(answer[0])}
        for kind, answer in asked
    ]  # fmt: skip
    write_rows(root / "ocrbench/data/test-00000-of-00001.parquet", rows)


def write_textvqa(root: Path) -> None:
    rows = [
        {"question_id": 34602 + i, "question": question, "ocr_tokens": tokens, "answers": answers,
         "image": encoded(answers[0])}
        for i, (question, tokens, answers) in enumerate([
            ("what is the brand?", ["dakota", "DIGITAL"], ["dakota"] * 8 + ["dakota digital", "digital"]),
            ("what number is it?", [], ["five"] * 4 + ["5"] * 6),
        ])
    ]  # fmt: skip
    write_rows(root / "textvqa/data/validation-00000-of-00001.parquet", rows)


def write_docvqa(root: Path) -> None:
    asked = [
        (101, "What is the date?", ["1/8/93"]),
        (102, "To whom?", ["P. Carter", "p. carter"]),
        (103, "No.?", ["7"]),
    ]
    rows = [
        {"questionId": str(number), "question": question, "answers": answers, "image": encoded(answers[0])}
        for number, question, answers in asked
    ]
    write_rows(root / "docvqa/DocVQA/validation-00000-of-00001.parquet", rows)
    write_rows(root / "docvqa/DocVQA/test-00000-of-00001.parquet", [row | {"answers": None} for row in rows[:2]])


# ---------------------------------------------------------------- vision-centric


def write_mmvp(root: Path) -> None:
    images = root / "mmvp/MMVP Images"
    images.mkdir(parents=True, exist_ok=True)
    asked = [
        ("Is the door open?", "(a) Open (b) Closed", "(a)"),
        ("Is the door open?", "(a) Open (b) Closed", "(b)"),
        ("Where is the cat?", "(a) On the mat (b) Under the mat", "(b)"),
        ("Where is the cat?", "(a) On the mat (b) Under the mat", "(a)"),
    ]
    with open(root / "mmvp/Questions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["lndex", "Question", "Options", "Correct Answer"])
        for index, row in enumerate(asked, 1):
            writer.writerow([index, *row])
            rendered(f"{row[0]}\n{row[2]}").save(images / f"{index}.jpg")


def write_realworldqa(root: Path) -> None:
    letter = "\nPlease answer directly with only the letter of the correct option and nothing else."
    asked = [
        (f"Which way?\nA. Left\nB. Right{letter}", "B"),
        ("How many lanes? Please answer directly with a single word or number.", "3"),
        (f"Is it safe?\nA. Yes\nB. No{letter}", "A"),
    ]
    rows = [{"image": encoded(answer), "question": question, "answer": answer} for question, answer in asked]
    write_rows(root / "realworldqa/data/test-00000-of-00001.parquet", rows)


def write_cv_bench(root: Path) -> None:
    def rows(kind: str, asked: list[tuple[str, str]]) -> list[dict[str, Any]]:
        prompt = "How many are there? Select from the following choices.\n(A) 0\n(B) 1\n(C) 2"
        return [
            {"idx": i, "type": kind, "task": "Count", "source": source, "question": "How many are there?",
             "choices": ["0", "1", "2"], "prompt": prompt, "answer": answer, "image": encoded(f"{kind} {i}")}
            for i, (source, answer) in enumerate(asked)
        ]  # fmt: skip

    write_rows(root / "cv_bench/test_2d.parquet", rows("2D", [("ADE20K", "(C)"), ("ADE20K", "(A)"), ("COCO", "(A)")]))
    write_rows(root / "cv_bench/test_3d.parquet", rows("3D", [("Omni3D", "(B)"), ("Omni3D", "(A)")]))


Writer = Callable[[Path], None]
GENERAL: tuple[Writer, ...] = (write_mme, write_mmbench, write_seed, write_gqa)
KNOWLEDGE: tuple[Writer, ...] = (write_scienceqa, write_mmmu, write_mathvista, write_ai2d)
OCR_AND_CHART: tuple[Writer, ...] = (write_chartqa, write_ocrbench, write_textvqa, write_docvqa)
VISION_CENTRIC: tuple[Writer, ...] = (write_mmvp, write_realworldqa, write_cv_bench)
