from tests.report.evaluations import content_of
from webssl_fast.report.alignment_chart import PUBLISHED, alignment_svg
from webssl_fast.report.result_files import Result
from webssl_fast.report.tables import make_tables


def test_own_scores_under_the_published_range():
    rows = make_tables([Result.model_validate(content_of("alignment"))]).alignment
    drawn = alignment_svg(rows, 1080)
    assert drawn.count('class="solid"') == 2 and PUBLISHED in drawn
    assert "vit_small, Llama-3.1-8B: 0.1725" in drawn


def test_the_published_range_alone():
    assert 'class="solid"' not in alignment_svg([], 370) and 'class="band"' in alignment_svg([], 370)
