"""Our vision-language models as a model of lmms-eval, the second judge of VQA.

    lmms-eval --model webssl_fast --model_args run=OUTPUT_DIR --tasks realworldqa,ocrbench

lmms-eval finds this module by its entry point, and nothing of ours imports it. It asks with prompts and scores by rules
of its own, which are not those of the paper (docs/vqa_benchmarks.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from webssl_fast.evals.vqa.question import Question
from webssl_fast.recipes.vqa import open_trained

_log = logging.getLogger(__name__)

GREEDY = (
    "webssl_fast answers greedily, and the task asks for temperature %s, num_beams %s: its scores are of greedy answers"
)


def manifest() -> ModelManifest:
    """What lmms-eval registers under the name `webssl_fast`."""
    return ModelManifest("webssl_fast", simple_class_path=f"{__name__}.VisionLanguageJudged")


class VisionLanguageJudged(lmms):
    """A model that `webssl vqa` trained, answering one image and one text at a time, greedily.

    run         the output_dir of a finished `webssl vqa`
    batch_size  questions that are answered at once; "auto": the run's answer_batch_size
    device      as torch names it; None: a GPU where there is one
    """

    is_simple = True

    def __init__(
        self,
        run: str = "",
        batch_size: int | str = "auto",
        device: str | None = None,
        max_batch_size: int | None = None,  # lmms-eval gives it to every model
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown or not run:
            raise ValueError(f"model_args are run=OUTPUT_DIR, and batch_size and device at will; got {sorted(unknown)}")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model, config = open_trained(Path(run), where)
        self._batch_size = config.answer_batch_size if batch_size == "auto" else int(batch_size)
        self._warned = False

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        questions = [self._question(request) for request in requests]
        given = self._model.answers(questions, self._batch_size)
        answers = tqdm(given, total=len(questions), desc="answers", unit="question", disable=None)
        return [
            _cut(answer, request.args[1].get("until", ())) for answer, request in zip(answers, requests, strict=True)
        ]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("webssl_fast generates answers; tasks of output_type loglikelihood cannot be run")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("webssl_fast answers one question at a time; tasks of several rounds cannot be run")

    def _question(self, request: Instance) -> Question:
        prompt, settings, doc_to_visual, doc_id, task, split = request.args
        temperature, num_beams = settings.get("temperature") or 0, settings.get("num_beams") or 1
        if not self._warned and (temperature > 0 and settings.get("do_sample") or num_beams > 1):
            self._warned = True
            _log.warning(GREEDY, temperature, num_beams)
        document = self.task_dict[task][split][doc_id]
        return Question(
            id=f"{task}/{split}/{doc_id}",
            prompt=prompt.replace("<image>", "").strip(),
            image=_first_image(doc_to_visual, document, f"{task}, question {doc_id}"),
            max_new_tokens=settings.get("max_new_tokens", 512),
        )


def _first_image(
    doc_to_visual: Callable[[Any], list[Any] | None], document: Any, where: str
) -> Callable[[], PIL.Image.Image] | None:
    """The protocol of Cambrian, whose model takes one image: of several the first. None where a question has none."""
    visuals = doc_to_visual(document) or []
    if not visuals:
        return None
    if not isinstance(visuals[0], PIL.Image.Image):
        raise TypeError(f"{where}: webssl_fast sees images only, not {type(visuals[0]).__name__}")
    return lambda: doc_to_visual(document)[0].convert("RGB")  # type: ignore[index]


def _cut(answer: str, until: str | Sequence[str]) -> str:
    for stop in [until] if isinstance(until, str) else until:
        answer = answer.split(stop)[0]
    return answer
