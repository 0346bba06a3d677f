"""Torch modules trained by the compiled step, beside torch's own loop."""

import copy

import pytest

import chainrule as cr

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from chainrule.interop.torch import accelerate, fuse  # noqa: E402

torch.set_num_threads(1)


def policy(dtype=torch.float32, activation=nn.Tanh):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 4)]
    return nn.Sequential(*layers).to(dtype)


def rows(n=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=generator, dtype=dtype)
    return x, (x[:, :4] + x[:, 4:]).argmax(dim=1)


def torch_step(module, loss, optimizer, x, y):
    optimizer.zero_grad()
    value = loss(module(x), y)
    value.backward()
    optimizer.step()
    return value.item()


@pytest.mark.parametrize(
    ("make", "dtype", "steps", "bound"),
    [
        (lambda p: torch.optim.SGD(p, 0.05), torch.float32, 500, 1e-5),
        (lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), torch.float32, 100, 1e-5),
        (lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
         torch.float64, 100, 1e-9),
        (lambda p: torch.optim.Adam(p, 1e-3), torch.float32, 100, 1e-4),
        (lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-2), torch.float64, 100, 1e-9),
        (lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1), torch.float64, 100, 1e-9),
    ],
    ids=["sgd", "momentum", "nesterov64", "adam", "adam64", "adamw64"],
)  # fmt: skip
def test_losses_and_states_agree_with_torch(make, dtype, steps, bound):
    ours, theirs = policy(dtype), policy(dtype)
    x, y = rows(dtype=dtype)
    loss = nn.CrossEntropyLoss()
    mine, other = make(ours.parameters()), make(theirs.parameters())
    fast = accelerate(ours, loss, mine, seed=1)
    for _ in range(steps):
        assert abs(fast.step(x, y) - torch_step(theirs, loss, other, x, y)) < bound
    # torch goes on from our state, and we from torch's
    torch_step(ours, loss, mine, x, y)
    fast.step(x, y)
    for _ in range(2):
        torch_step(theirs, loss, other, x, y)
    assert abs(fast.step(x, y) - torch_step(theirs, loss, other, x, y)) < bound
    for a, b in zip(mine.state.values(), other.state.values(), strict=True):
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-5)


def test_fit_runs_epochs_on_torchs_memory():
    module, (x, y) = policy(), rows(200)
    pointers = [p.data_ptr() for p in module.parameters()]
    versions = [p._version for p in module.parameters()]
    fast = accelerate(module, nn.CrossEntropyLoss(), torch.optim.Adam(module.parameters()), seed=1)
    history = fast.fit(x, y, epochs=5, batch_size=64)
    assert history["loss"][-1] < history["loss"][0]
    assert [p.data_ptr() for p in module.parameters()] == pointers
    assert all(p._version > v for p, v in zip(module.parameters(), versions, strict=True))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(module(x), y).item()
    assert abs(fast.step(x, y) - expected) < 1e-5


def test_an_embedding_learns_as_torchs():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Embedding(50, 6), nn.Flatten(), nn.Sequential(nn.Linear(18, 10), nn.Sigmoid()),
            nn.LayerNorm(10), nn.Dropout(0.0), nn.Identity(), nn.Linear(10, 3),
        )  # fmt: skip

    ids = torch.randint(0, 50, (40, 3), generator=torch.Generator().manual_seed(2))
    y = ids.sum(dim=1) % 3
    for kind, lr in ((torch.optim.SGD, 0.1), (torch.optim.Adam, 0.01)):
        ours, theirs = make(), make()
        fast = accelerate(ours, nn.functional.cross_entropy, kind(ours.parameters(), lr))
        other = kind(theirs.parameters(), lr)
        for _ in range(20):
            ours_loss = fast.step(ids, y)
            theirs_loss = torch_step(theirs, nn.functional.cross_entropy, other, ids, y)
            assert abs(ours_loss - theirs_loss) < 1e-4


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh"), lambda: nn.LeakyReLU(0.2), nn.ELU,
        nn.Softplus, nn.Hardtanh, nn.Sigmoid,
    ],
)  # fmt: skip
def test_every_non_linearity_agrees(activation):
    ours, theirs = policy(torch.float64, activation), policy(torch.float64, activation)
    x, _ = rows(dtype=torch.float64)
    y = x[:, :4] * 0.5
    for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(delta=0.3), nn.SmoothL1Loss()):
        fast = accelerate(ours, loss, torch.optim.SGD(ours.parameters(), 0.05))
        other = torch.optim.SGD(theirs.parameters(), 0.05)
        for _ in range(3):
            assert abs(fast.step(x, y) - torch_step(theirs, loss, other, x, y)) < 1e-6
    fused = fuse(theirs)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(fused(a), theirs(b), rtol=1e-7, atol=1e-7)
    theirs.zero_grad()
    fused(a).square().sum().backward()
    grads = [p.grad.clone() for p in theirs.parameters()]
    theirs.zero_grad()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    for mine, p in zip(grads, theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-6, atol=1e-6)


def test_a_gradient_may_be_made_between_forward_and_backward():
    ours, theirs = policy(torch.float64), policy(torch.float64)
    x, y = rows(dtype=torch.float64)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)  # one that the compiled step does not have
    mine, other = (torch.optim.Adam(m.parameters(), 1e-2) for m in (ours, theirs))
    fast = accelerate(ours, nn.CrossEntropyLoss(), mine)
    for _ in range(20):
        outputs, finish = fast.begin_step(x)
        outputs.requires_grad_()
        loss(outputs, y).backward()
        dx = finish(outputs.grad)
        other.zero_grad()
        own = x.clone().requires_grad_()
        loss(theirs(own), y).backward()
        other.step()
        torch.testing.assert_close(dx, own.grad, rtol=1e-9, atol=1e-12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    outputs, finish = fast.begin_step(x)
    with pytest.raises(cr.ChainruleError, match="update=False"):
        finish(outputs, update=False)


def test_the_learning_rate_is_the_present_one_and_schedulers_are_content():
    module, (x, y) = policy(), rows()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    fast = accelerate(module, nn.CrossEntropyLoss(), optimizer)
    fast.step(x, y)
    scheduler.step()
    before = copy.deepcopy(module.state_dict())
    fast.step(x, y)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_frozen_parameters_stay():
    module, (x, y) = policy(), rows()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    fast = accelerate(module, nn.CrossEntropyLoss(), torch.optim.Adam(module.parameters(), 0.01))
    fast.fit(x, y, epochs=2, batch_size=16)
    assert torch.equal(module[0].weight, before)


def test_an_error_leaves_whole_steps():
    module, (x, y) = policy(), rows()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    fast = accelerate(module, nn.CrossEntropyLoss(), optimizer)
    versions = [p._version for p in module.parameters()]

    class Stop(cr.callbacks.Callback):
        def on_epoch_end(self, trainer, logs):
            if trainer.optimizer.steps >= 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast.fit(x, y, epochs=50, batch_size=16, shuffle=False, callbacks=[Stop()])
    assert all(p._version > v for p, v in zip(module.parameters(), versions, strict=True))
    other = policy()
    accelerate(other, nn.CrossEntropyLoss(), torch.optim.SGD(other.parameters(), 0.1)).fit(
        x, y, epochs=2, batch_size=16, shuffle=False
    )
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(cr.ChainruleError, match="label"):
        fast.step(x, y + 9)


def hooked():
    module = policy()
    module[2].register_forward_hook(lambda *a: None)
    return module


def shared():
    module = policy()
    module[2] = nn.Linear(64, 64)
    module.append(nn.Linear(4, 64))
    module[4] = module[2]
    return module


def mixed():
    module = policy()
    module[2] = module[2].double()
    return module


def strided():
    module = policy()
    module[2].weight.data = module[2].weight.data.t()
    return module


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 4), nn.PReLU()), r"layer '1' \(PReLU\)"),
        (lambda: nn.Linear(8, 4), "Linear"),
        (hooked, "layer '2': has hooks"),
        (shared, "share"),
        (mixed, r"parameter '2.weight': expected torch.float32.*float64"),
        (strided, r"parameter '2.weight': is not contiguous"),
        (lambda: policy(torch.bfloat16), "float32 or float64"),
        (lambda: policy().to("meta"), "meta"),
        (lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=0)), "padding_idx=0"),
    ],
)
def test_what_is_not_supported_is_named(make, match):
    module = make()
    with pytest.raises(cr.ChainruleError, match=match):
        accelerate(module, nn.CrossEntropyLoss(), torch.optim.SGD(module.parameters(), 0.1))


@pytest.mark.parametrize(
    ("loss", "make", "match"),
    [
        (nn.NLLLoss(), torch.optim.SGD, "NLLLoss"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.optim.SGD, "label_smoothing"),
        (nn.CrossEntropyLoss(reduction="sum"), torch.optim.SGD, "reduction"),
        (nn.MSELoss(), torch.optim.RMSprop, "RMSprop"),
        (nn.MSELoss(), lambda p, lr: torch.optim.Adam(p, lr, amsgrad=True), "amsgrad"),
    ],
)
def test_losses_and_optimizers_that_are_not_supported_are_named(loss, make, match):
    module = policy()
    with pytest.raises(cr.ChainruleError, match=match):
        accelerate(module, loss, make(module.parameters(), lr=0.1))


def test_a_fused_network_trains_with_any_loss():
    module, (x, y) = policy(), rows()
    fused = fuse(module, threads=1)
    assert list(fused.state_dict()) == list(module.state_dict())
    optimizer = torch.optim.Adam(fused.parameters(), 0.01)
    first = torch_step(fused, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, x, y)
    for _ in range(50):
        last = torch_step(fused, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, x, y)
    assert last < first
    with pytest.raises(cr.ChainruleError, match="layer '0'"):
        fuse(nn.Sequential(nn.Embedding(3, 2)))


@pytest.mark.filterwarnings("ignore")
def test_the_registered_op_is_sound():
    module, (x, _) = policy(torch.float64, nn.GELU), rows(6, torch.float64)
    fused = fuse(module)
    params = [p.detach().requires_grad_() for p in module.parameters()]
    arguments = (x.requires_grad_(), params, fused._rows, fused._slopes, 1)
    torch.library.opcheck(torch.ops.chainrule.mlp.default, arguments)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    (a,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (b,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(a, b)
