import pytest
import torch

from webssl_fast.ops import _library
from webssl_fast.ops.prototype_cross_entropy import prototype_cross_entropy, prototype_cross_entropy_reference
from webssl_fast.ops.sinkhorn_knopp import sinkhorn_knopp

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}
# Student rows, teacher rows, pairs of a student row, prototypes.
SHAPES = [(1, 1, 1, 1), (5, 3, 1, 1000), (7, 9, 2, 33), (12, 4, 3, 4099)]
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)]


def problem(num_students, num_teachers, num_pairs, num_prototypes, dtypes=DTYPES[0], spread=0.3, seed=0):
    """Arguments of the op, with some pairs of weight 0 (if there are several) whose target row does not exist."""
    generator = torch.Generator().manual_seed(seed)
    student = (torch.randn(num_students, num_prototypes, generator=generator) * spread).to(dtypes[0])
    teacher = (torch.randn(num_teachers, num_prototypes, generator=generator) * spread).to(dtypes[1])
    potentials = sinkhorn_knopp(teacher, TEMPERATURES["teacher_temperature"])
    rows = torch.randint(num_teachers, (num_students, num_pairs), generator=generator)
    weights = torch.rand(num_students, num_pairs, generator=generator) + 0.1
    if num_students > 1:
        weights[::4, 0] = 0
        weights[0] = 0
        rows[weights == 0] = 10**6
    return student, teacher, *potentials, rows, weights


def exact(student, teacher, row_potential, prototype_potential, rows, weights):
    """The loss and its gradient by the student's logits from the formulas, pair by pair in fp64."""
    y = student.double() / TEMPERATURES["student_temperature"]
    log_p = teacher.double() / TEMPERATURES["teacher_temperature"] + row_potential.double()[:, None]
    p = torch.exp(log_p + prototype_potential.double())
    loss, grad = y.new_zeros(()), torch.zeros_like(y)
    for s, m in torch.nonzero(weights).tolist():
        target, weight = p[rows[s, m]], weights[s, m].double()
        log_softmax = y[s] - y[s].logsumexp(0)
        loss += weight * -(target * log_softmax).sum()
        grad[s] += weight * (target.sum() * log_softmax.exp() - target) / TEMPERATURES["student_temperature"]
    return loss, grad


def run(function, arguments, scale=1.0):
    student, *others = arguments
    leaf = student.clone().requires_grad_()
    loss = function(leaf, *others, **TEMPERATURES)
    (loss * scale).backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtypes):
    arguments = problem(*shape, dtypes)
    expected, _ = exact(*arguments)
    loss = prototype_cross_entropy(*arguments, **TEMPERATURES)
    torch_own = prototype_cross_entropy_reference(*arguments, **TEMPERATURES)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert (loss - expected).abs() <= 2 * (torch_own - expected).abs() + 2e-7 * expected.abs() + 1e-6


@pytest.mark.parametrize("scale", [1.0, -0.37])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_match_reference(shape, dtypes, scale):
    arguments = problem(*shape, dtypes)
    _, expected = exact(*arguments)
    expected = expected * scale
    _, ours = run(prototype_cross_entropy, arguments, scale)
    _, torch_own = run(prototype_cross_entropy_reference, arguments, scale)
    assert ours.dtype == dtypes[0]
    error, torch_error = (ours.double() - expected).abs().max(), (torch_own.double() - expected).abs().max()
    assert error <= 2 * torch_error + 1e-6


def test_survives_large_logits():
    student, teacher, _, _, rows, weights = problem(6, 5, 2, 301)
    student, teacher = student * 1e4, teacher * 1e3
    arguments = (student, teacher, *sinkhorn_knopp(teacher, 0.04), rows, weights)
    expected_loss, expected_grad = exact(*arguments)
    loss, grad = run(prototype_cross_entropy, arguments)
    torch_loss, torch_grad = run(prototype_cross_entropy_reference, arguments)
    assert (loss - expected_loss).abs() <= 2 * (torch_loss - expected_loss).abs() + 1e-6 * expected_loss
    assert (grad - expected_grad).abs().max() <= 2 * (torch_grad - expected_grad).abs().max() + 1e-5


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_nan_stays_visible(index):
    """In the student's or the teacher's logits, or in a potential, with any payload."""
    arguments = problem(1, 1, 1, 3000)
    arguments[index].view(torch.int32).view(-1)[-1] = -1
    loss, grad = run(prototype_cross_entropy, arguments)
    assert loss.isnan() and grad[0, -1].isnan()


def test_dino_pairs_equal_the_published_sums():
    """The 18 (student crop, teacher crop) pairs of 2 global and 8 local crops, averaged over pairs and images."""
    num_images, num_prototypes = 3, 65
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(10, num_images, num_prototypes, generator=generator)
    teacher = torch.randn(2, num_images, num_prototypes, generator=generator) * 0.1
    row, prototype = sinkhorn_knopp(teacher.flatten(0, 1), 0.04)
    p = torch.exp(teacher.flatten(0, 1) / 0.04 + row[:, None] + prototype).view_as(teacher)
    expected = sum(
        -(p[t] * torch.log_softmax(student[s] / 0.1, dim=-1)).sum(dim=-1).mean() / 18
        for s in range(10)
        for t in range(2)
        if s != t
    )
    crop, image = torch.arange(10).repeat_interleave(num_images), torch.arange(num_images).repeat(10)
    rows = torch.stack([image, num_images + image], dim=1).int()
    weights = (crop[:, None] != torch.tensor([0, 1])).float() / (18 * num_images)
    loss = prototype_cross_entropy(
        student.flatten(0, 1), teacher.flatten(0, 1), row, prototype, rows, weights, **TEMPERATURES
    )
    torch.testing.assert_close(loss, expected)


def test_empty():
    student, teacher, row, prototype, _, _ = problem(4, 3, 1, 5)
    for num_students, num_pairs in ((0, 2), (4, 0)):
        rows = torch.zeros(num_students, num_pairs, dtype=torch.int64)
        arguments = (student[:num_students], teacher, row, prototype, rows, rows.float())
        loss, grad = run(prototype_cross_entropy, arguments)
        assert loss == 0 and torch.equal(grad, torch.zeros(num_students, 5))
    no_teachers = (student, teacher[:0], row[:0], prototype, torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1))
    loss, grad = run(prototype_cross_entropy, no_teachers)
    assert loss == 0 and torch.equal(grad, torch.zeros(4, 5))


def test_non_contiguous():
    student, teacher, row, prototype, rows, weights = problem(8, 6, 2, 40)
    wide = torch.arange(80) // 2
    views = (
        student[:, wide][:, ::2],
        teacher.T.contiguous().T,
        row.repeat_interleave(2)[::2],
        prototype.repeat_interleave(2)[::2],
        rows.T.contiguous().T,
        weights.T.contiguous().T,
    )
    assert not any(view.is_contiguous() for view in views)
    expected_loss, expected_grad = run(prototype_cross_entropy, (student, teacher, row, prototype, rows, weights))
    loss, grad = run(prototype_cross_entropy, views)
    assert torch.equal(loss, expected_loss) and torch.equal(grad, expected_grad)


def test_no_gradient_is_computed_where_none_is_required():
    arguments = problem(4, 3, 1, 50)
    assert not prototype_cross_entropy(*arguments, **TEMPERATURES).requires_grad
    _, grad = torch.ops.webssl.prototype_cross_entropy(*arguments, 0.1, 0.04, False)
    assert grad.numel() == 0


def test_a_second_backward_is_an_error():
    student, *others = problem(4, 3, 1, 50)
    loss = prototype_cross_entropy(student.requires_grad_(), *others, **TEMPERATURES)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()
    loss = prototype_cross_entropy(student, *others, **TEMPERATURES)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_gradients_of_several_losses_add_up():
    student, *others = problem(4, 3, 1, 50)
    _, expected = run(prototype_cross_entropy, (student, *others))
    leaf = student.clone().requires_grad_()
    shared = leaf * 1.0
    losses = [prototype_cross_entropy(shared, *others, **TEMPERATURES) for _ in range(2)]
    (losses[0] + 2 * losses[1] + 3 * losses[0]).backward()
    torch.testing.assert_close(leaf.grad, 6 * expected)


def test_reference_can_be_forced():
    arguments = problem(4, 3, 1, 50)
    _library.force_reference(True)
    try:
        forced = run(prototype_cross_entropy, arguments)
    finally:
        _library.force_reference(False)
    expected = run(prototype_cross_entropy_reference, arguments)
    assert all(torch.equal(a, b) for a, b in zip(forced, expected, strict=True))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_opcheck(dtypes):
    student, *others = problem(4, 3, 2, 50, dtypes)
    for with_gradient in (False, True):
        leaf = student.clone().requires_grad_(with_gradient)
        torch.library.opcheck(
            torch.ops.webssl.prototype_cross_entropy, (leaf, *others, *TEMPERATURES.values(), with_gradient)
        )
    torch.library.opcheck(torch.ops.webssl.prototype_cross_entropy_backward, (student.clone(), torch.tensor(2.0)))


def test_compiles_fullgraph():
    arguments = problem(4, 3, 2, 50)
    compiled = torch.compile(prototype_cross_entropy, backend="aot_eager", fullgraph=True)
    for scale in (1.0, 3.0):
        torch.testing.assert_close(
            run(compiled, arguments, scale), run(prototype_cross_entropy, arguments, scale), rtol=0, atol=0
        )


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_is_deterministic(dtypes):
    arguments = problem(50, 20, 2, 3001, dtypes)
    num_threads = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(prototype_cross_entropy, arguments, 0.3))
    finally:
        torch.set_num_threads(num_threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [1.0, -0.37])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 200, 2, 4097)], ids=str)
def test_gpu_matches_reference(shape, dtypes, scale):
    arguments = problem(*shape, dtypes)
    on_gpu = [tensor.cuda() for tensor in arguments]
    loss, grad = run(prototype_cross_entropy, on_gpu, scale)
    cpu_loss, cpu_grad = run(prototype_cross_entropy, arguments, scale)
    torch.testing.assert_close(loss.cpu(), cpu_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.cpu(), cpu_grad, rtol=2**-7 if dtypes[0] == torch.bfloat16 else 1e-4, atol=1e-5)


@pytest.mark.gpu
def test_gpu_target_rows_out_of_range_make_the_loss_nan():
    student, teacher, row_potential, prototype, rows, weights = (t.cuda() for t in problem(4, 3, 1, 5))
    rows[2, 0] = 3
    assert prototype_cross_entropy(student, teacher, row_potential, prototype, rows, weights, **TEMPERATURES).isnan()


@pytest.mark.gpu
def test_gpu_more_than_2_31_elements():
    num_rows, num_prototypes = 16_400, 131_072
    logits = torch.randn(num_rows, num_prototypes, device="cuda", dtype=torch.bfloat16) * 0.3
    assert logits.numel() > 2**31
    row = -torch.stack([torch.logsumexp(block.float() / 0.04, dim=1) for block in logits.split(400)]).flatten()
    rows = torch.arange(num_rows, device="cuda")[:, None]
    weights = torch.zeros(num_rows, 1, device="cuda")
    weights[-5:] = 1
    arguments = (logits, logits, row, torch.zeros(num_prototypes, device="cuda"), rows, weights)
    loss, grad = run(prototype_cross_entropy, arguments)
    expected_loss, expected_grad = exact(*(t[-5:] for t in arguments[:3]), arguments[3], rows[:5], weights[-5:])
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(grad[-5:].double(), expected_grad, rtol=2**-7, atol=1e-6)
    assert not grad[:-5].any()


@pytest.mark.parametrize("row", [-1, 3])
def test_rejects_target_rows_out_of_range(row):
    student, teacher, row_potential, prototype, rows, weights = problem(4, 3, 1, 5)
    rows[2, 0] = row
    with pytest.raises(IndexError, match=f"target_rows_SM\\[2, 0\\] is {row}, but there are 3 teacher rows"):
        prototype_cross_entropy(student, teacher, row_potential, prototype, rows, weights, **TEMPERATURES)


@pytest.mark.parametrize(
    "index,value,error,message",
    [
        (0, torch.zeros(4), ValueError, "student_logits_SK has shape"),
        (0, torch.zeros(4, 0), ValueError, "at least 1 prototype"),
        (0, torch.zeros(4, 5, dtype=torch.float16), TypeError, "float32 or bfloat16"),
        (1, torch.zeros(3, 6), ValueError, "both heads need the same number"),
        (2, torch.zeros(4), ValueError, "row_potential_R has shape"),
        (3, torch.zeros(5, dtype=torch.float64), TypeError, "prototype_potential_K is torch.float64"),
        (4, torch.zeros(3, 1, dtype=torch.int64), ValueError, "target_rows_SM has shape"),
        (4, torch.zeros(4, 1), TypeError, "int32 or int64"),
        (5, torch.zeros(4, 2), ValueError, "each pair needs one weight"),
        (5, torch.zeros(4, 1, dtype=torch.float64), TypeError, "weights_SM is torch.float64"),
    ],
)
def test_rejects_bad_tensors(index, value, error, message):
    arguments = list(problem(4, 3, 1, 5))
    arguments[index] = value
    with pytest.raises(error, match=message):
        prototype_cross_entropy(*arguments, **TEMPERATURES)


def test_rejects_bad_temperatures():
    with pytest.raises(ValueError, match="student_temperature is 0.0"):
        prototype_cross_entropy(*problem(4, 3, 1, 5), student_temperature=0.0, teacher_temperature=0.04)
