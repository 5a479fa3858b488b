"""Compiled kernels against the reference, run instruction by instruction, and with each barrier left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

from builds import CARDS, Build, compile_kernel  # noqa: E402
from cases import Case  # noqa: E402
from launches import DIRECTIONS, DTYPES, TOLERANCE, Launcher  # noqa: E402
from lstm_fused.kernels import product, step, variant  # noqa: E402
from lstm_fused.kernels.plan import EXCHANGES, GLUON  # noqa: E402
from lstm_fused.kernels.table import BackwardTensors, ForwardTensors  # noqa: E402
from points import BLOCK, ROUGH, UNITS, check_points, functions_kernel, points  # noqa: E402
from ptx import Fault, Machine, Program  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bench import roofline  # noqa: E402

# Those in Gluon have tests of their own, in test_persistent.py and test_cluster.py.
KERNELS = tuple(name for name in EXCHANGES if name not in GLUON)
# As small as possible, with enough iterations of the product loop to reuse each of its buffers.
SMALL = {
    ("step", "forward"): Case("small", T=1, B=16, I=3, H=160),
    ("step", "backward"): Case("small", T=1, B=16, I=3, H=80),
}
# The compiler separates two uses of one buffer even if each warp accesses only bytes of its own.
MOST_IDLE = 2


@pytest.fixture(params=CARDS[:2], ids=lambda card: card.capability)
def card(request):
    return request.param


@pytest.mark.parametrize("kind", list(DTYPES))
@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiled_code_gives_what_the_reference_gives(card, kernel, direction, kind):
    case = Case("odd", T=3, B=17, I=3, H=24 if kind == "fp64" else 40)
    launch = Launcher(card, kernel, direction, kind, case.H)
    found, wanted = DIRECTIONS[direction](launch, kernel, kind, case)
    tolerance = TOLERANCE[kind]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", list(DTYPES))
def test_a_product(card, kind):
    B, K, H = 17, 40, 11
    launch = Launcher(card, "step", "forward", kind, H, P=K, function=product.lstm_product_kernel)
    torch.manual_seed(0)
    left, right = ((torch.randn(shape) / 2).to(DTYPES[kind]) for shape in ((B, K), (4 * H, K)))
    out = left.new_full((B, 4 * H), torch.nan)
    launch(launch.plan.grid(B, 4 * H), [left, right, out], B)
    wanted = left.double() @ right.double().T
    tolerance = TOLERANCE[kind]
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", list(DTYPES))
def test_the_projection_of_a_step(card, kind):
    T, B, P, H = 2, 17, 11, 40
    function = product.lstm_projection_step_kernel
    launch = Launcher(card, "step", "forward", kind, H, P=P, function=function, projected=True)
    torch.manual_seed(0)
    m, weight_hr = ((torch.randn(shape) / 2).to(DTYPES[kind]) for shape in ((B, H), (P, H)))
    h, y = (m.new_full(shape, torch.nan) for shape in ((B, P), (T, B, P)))
    tensors = none_of(ForwardTensors)._replace(h=h, h_next=m, y=y, weight_hr=weight_hr)
    launch.step(launch.plan.grid(B, P), tensors, 1, T, B)
    wanted = m.double() @ weight_hr.double().T
    tolerance = TOLERANCE[kind]
    for found in (h, y[1]):
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    assert y[0].isnan().all()


@pytest.mark.parametrize("exact", [True, False])
def test_functions_of_float32(card, exact):
    x = points(torch.float32, blocks=2)
    y = torch.full((4 * len(x),), torch.nan)
    constants = {"EXACT": exact, "BLOCK": BLOCK}
    signature = {"x": "*fp32", "y": "*fp32", "N": "i32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=functions_kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", int(card.capability[3:]), 32))
    machine = Machine()
    addresses = [machine.put(x), machine.put(y), len(x)]
    machine.launch(Program(compiled.asm["ptx"]), (len(x) // BLOCK, 1), addresses, 0)
    if exact:
        check_points(x, y)
    else:
        check_points(x, y, ROUGH)
        for name in ("sigmoid", "tanh"):
            with pytest.raises(AssertionError, match=name):
                check_points(x, y, ROUGH | {name: UNITS[name]})


def approximate_lines(compiled):
    found = Program(compiled.asm["ptx"]).instructions
    return [line for *_, qualifiers, _, line in found if {"approx", "full"} & set(qualifiers)]


def one_chain(left, right):
    """Left right in float32, each sum by one chain of fused multiply-adds over all terms."""
    total = torch.zeros(len(left), right.shape[1])
    for k in range(len(right)):
        total = (total.double() + left[:, k : k + 1].double() * right[k].double()).float()
    return total


@pytest.mark.parametrize("function", ["product", "forward", "backward"])
def test_long_sums_in_float32_are_not_one_chain(card, function):
    """Its error would be more than twice that of the reference's products, which are several chains."""
    B, H, K = 5, 16, 768
    torch.manual_seed(0)
    left, right = torch.randn(B, K), torch.randn(K, H) / K**0.5
    if function == "product":
        launch = Launcher(card, "step", "forward", "fp32", 4, P=K, function=product.lstm_product_kernel)
        found = torch.full((B, H), torch.nan)
        launch(launch.plan.grid(B, H), [left, right.T.contiguous(), found], B)
    elif function == "forward":
        # The gates f are 1/2 and c is 2 a_g, so that c_n is the sum of the terms of g.
        launch = Launcher(card, "step", "forward", "fp32", H, P=K, projected=True)
        weight_hh, xw, found = torch.zeros(4, H, K), torch.zeros(B, 4, H), torch.zeros(B, H)
        weight_hh[2], h = right.T * 2**-20, left
        xw[:, 0] = 40  # i is 1, and tanh of so small numbers is the identity
        bias, peephole, h_next, c_all, gates = (torch.zeros(n, H) for n in (4, 3, B, B, 4 * B))
        given = {
            "xw": xw,
            "weight_hh": weight_hh,
            "bias": bias,
            "peephole": peephole,
            "h": h,
            "h_next": h_next,
        }
        given |= {"c_state": found, "c_all": c_all, "gates_all": gates}
        tensors = none_of(ForwardTensors)._replace(**given, weight_hr=torch.zeros(K, H))
        launch.step(launch.plan.grid(B, H), tensors, 0, 1, B)
        found *= 2**20
    else:  # f and o are 1 and c is 0, so that what goes to the c before is all of dh
        launch = Launcher(card, "step", "backward", "fp32", H, P=K, projected=True)
        found, c_all, c0, gates, peephole, dxw = (torch.zeros(n, H) for n in (B, B, B, 4 * B, 3, 4 * B))
        gates.view(B, 4, H)[:, [1, 3]] = 1
        given = {"dc_state": found, "c_all": c_all, "c0": c0, "gates_all": gates, "peephole": peephole}
        tensors = none_of(BackwardTensors)._replace(**given, dxw=dxw, weight_hr=right, dh_t=left)
        launch.step(launch.plan.grid(B, H), tensors, 0, 1, B)
    exact = left.double() @ right.double()
    error, error_of_one = ((sums.double() - exact).norm() for sums in (found, one_chain(left, right)))
    assert 0 < error < error_of_one / 2


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_nor_are_those_of_a_cooperative_kernel(card, direction):
    """The first program of a step runs; the others have already stored what they would send, and arrived."""
    B, H = 5, 768
    launch = Launcher(card, "cooperative", direction, "fp32", H)
    own, (rows, columns) = slice(launch.plan.BH), launch.plan.grid(B, H)
    assert rows == 1
    weight_hh, bias, peephole = torch.zeros(4, H, H), torch.zeros(4, H), torch.zeros(3, H)
    counters, timed_out = torch.zeros(rows + columns, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    counters[0] = columns - 1
    gates, c, c0, c_n, h_n, y = (torch.zeros(n, H) for n in (4 * B, B, B, B, B, B))
    torch.manual_seed(0)
    if direction == "forward":  # as with the step kernel, c_n is the sum of the terms of g
        left, right = torch.randn(B, H), torch.randn(H, launch.plan.BH) / H**0.5
        weight_hh[2, own], xw = right.T * 2**-20, torch.zeros(B, 4, H)
        xw[:, 0] = 40
        exchange = torch.stack((left, torch.full_like(left, torch.nan)))
        given = [xw, weight_hh, bias, peephole, left, c0, h_n, c_n, y, c, gates]
        launch((rows, columns), [*given, exchange, counters, timed_out], 1, B, 0, positions=[(0, 0)])
        found, chain = c_n[:, own] * 2**20, one_chain(left, right)
    else:  # the gates and so its own da are zeros
        left, right = torch.randn(4, B, H), torch.randn(4, H, launch.plan.BH) / H**0.5
        left[:, :, own] = 0
        weight_hh[:, :, own], dxw = right, left.transpose(0, 1).contiguous()
        dy, dh_n, dc_n, dh0, dc0 = (torch.zeros(B, H) for _ in range(5))
        given = [dy, dh_n, dc_n, c, gates, c0, weight_hh, peephole, dxw, dh0, dc0, bias, torch.zeros(3, H)]
        given += [torch.zeros(rows, 7, H), counters, timed_out]
        launch((rows, columns), given, 1, B, 0, rows, positions=[(0, 0)])
        found, chain = dh0[:, own], sum(map(one_chain, left, right))  # one for each gate
    assert not timed_out
    exact = (left.double() @ right.double()).view(-1, *found.shape).sum(0)
    error, error_of_chains = ((sums.double() - exact).norm() for sums in (found, chain))
    assert 0 < error < error_of_chains / 2


@pytest.mark.parametrize("direction", list(DIRECTIONS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_approximate_in_float32(card, kernel, direction):
    build = Build(kernel, direction, "fp32", 40, card)
    assert not approximate_lines(compile_kernel(build))
    assert approximate_lines(compile_kernel(replace(build, kind="bf16")))


@pytest.mark.parametrize(
    ("direction", "function"),
    [("forward", step.lstm_forward_step_kernel), ("backward", variant.lstm_norm_step_kernel)],
    ids=("forward", "backward"),
)
def test_nor_in_a_layer_norm(card, direction, function):
    build = Build("step", direction, "fp32", 40, card)
    assert not approximate_lines(compile_kernel(build, function, varied=True))


def zeros(*shape, kind=np.float16):
    """Zeros that take no memory until something else is written there."""
    return torch.from_numpy(np.zeros(shape, kind))


def none_of(record):
    return record(*[None] * len(record._fields))


# The widest grid; only the last tile of columns is run.
WIDE, TILE = 65535 * 16, slice(-16, None)


def test_forward_weights_past_two_to_the_31_numbers(card):
    H, P = WIDE, 528
    launch = Launcher(card, "step", "forward", "fp16", H, P=P)
    weight_hh, h, gates = zeros(4, H, P), torch.randn(1, P).half(), zeros(4, H)
    weight_hh[:, TILE] = torch.randn(4, 16, P) / 23
    assert weight_hh.numel() > 2**31
    xw, c_state, c_all = (zeros(n, H, kind=np.float32) for n in (4, 1, 1))
    bias, peephole, h_next, y = (zeros(n, H) for n in (4, 3, 1, 1))
    tensors = ForwardTensors(xw, weight_hh, bias, peephole, None, h, h_next, c_state, y, c_all, gates)
    grid = launch.plan.grid(1, H)
    launch.step(grid, tensors, 0, 1, 1, positions=[(0, grid[1] - 1)])
    a_i, a_f, a_g, a_o = torch.einsum("gnp,p->gn", weight_hh[:, TILE].float(), h[0].float())
    wanted = torch.stack((a_i.sigmoid(), a_f.sigmoid(), a_g.tanh(), a_o.sigmoid()))
    torch.testing.assert_close(gates[:, TILE].float(), wanted, rtol=4e-3, atol=4e-3)


def test_backward_weights_past_two_to_the_31_numbers(card):
    H, P = WIDE, 2112
    launch = Launcher(card, "step", "backward", "fp16", H, P=P, projected=True)
    weight_hr, dh_t = zeros(P, H), torch.randn(1, P).half()
    weight_hr[-32:, TILE] = torch.randn(32, 16) / 6
    assert weight_hr.numel() > 2**31
    dc, c_all = (zeros(1, H, kind=np.float32) for _ in range(2))
    c0, gates, peephole, dxw = (zeros(n, H) for n in (1, 4, 3, 4))
    gates[[1, 3], TILE] = 1  # f and o, with c = 0: then what goes to the c before is all of dh
    given = {"dc_state": dc, "c_all": c_all, "c0": c0, "gates_all": gates, "peephole": peephole, "dxw": dxw}
    tensors = none_of(BackwardTensors)._replace(**given, weight_hr=weight_hr, dh_t=dh_t)
    grid = launch.plan.grid(1, H)
    launch.step(grid, tensors, 0, 1, 1, positions=[(0, grid[1] - 1)])
    wanted = dh_t.float() @ weight_hr[:, TILE].float()
    torch.testing.assert_close(dc[:, TILE], wanted, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if EXCHANGES[name] != "launches"])
def test_barriers_after_the_time_loop(card, kernel):
    program = Launcher(card, kernel, "backward", "fp16", 32).program
    jumps = [
        (n, program.labels[operands[0]])
        for n, (_, _, name, _, operands, _) in enumerate(program.instructions)
        if name == "bra"
    ]
    end, _ = max(((n, to) for n, to in jumps if to < n), key=lambda jump: jump[0] - jump[1])
    assert sum(name == "bar" for _, _, name, *_ in program.instructions[end:]) >= roofline.SUMS


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_each_barrier_is_missed_when_it_is_left_out(card, kernel, direction):
    case = SMALL.get((kernel, direction), Case("small", T=2, B=16, I=3, H=32))

    def run(left_out=None):
        launch = Launcher(card, kernel, direction, "fp16", case.H, left_out)
        found, _ = DIRECTIONS[direction](launch, kernel, "fp16", case)
        return launch, found

    whole, right = run()
    assert whole.barriers
    missed = set()
    for barrier in whole.barriers:
        try:
            _, found = run(barrier)
        except Fault:
            missed.add(barrier)
        else:
            assert all(map(torch.equal, found, right))
    # Across a barrier that can be left out, no two warps access one byte, one of them writing, and no release
    # follows stores; and the bytes that a warp accesses do not depend on numbers in the tensors.
    assert missed == whole.machine.needed
    assert len(whole.barriers) - len(missed) <= MOST_IDLE
