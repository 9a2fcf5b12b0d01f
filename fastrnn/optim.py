"""Optimisers, learning-rate schedules and gradient clipping, as in torch.optim.

They loop over the flat arrays of blocks: by a kernel of the C backend, which makes one pass of an
update, or in NumPy a piece at a time, so that its passes find their piece in the cache; a step
allocates nothing. A parameter that backward has not reached has a zero gradient, not none. One
optimiser has one set of options: for two learning rates make two. Read next: module.py for the
blocks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from .arguments import integer, number
from .backends import c_kernels
from .errors import DtypeError, FastrnnError, OptionError, ShapeError
from .module import Block, Module, Parameter, as_array

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "Optimizer",
    "RMSprop",
    "ReduceLROnPlateau",
    "StepLR",
    "clip_grad_norm",
    "clip_grad_value",
]

CHUNK = 1 << 15  # elements worked on at a time: the half a dozen arrays of Adam then fit into a core's cache

Params = Any  # a Module, a Parameter, or an iterable of them


@dataclass(frozen=True)
class Rule:
    """How a step changes a parameter.

    buffers    what it needs of that which is remembered, by the kernel's names, in the order that `update` takes them
    update     of one piece, in NumPy: (w, g, buffers..., s, t), with s and t spare memory of that size
    kernel     of all at once: the C backend's name for it
    constants  what the kernel is told beside
    """

    buffers: dict[str, str]
    update: Callable[..., None]
    kernel: str
    constants: Mapping[str, float]


# ---------------------------------------------------------------- parameters


@dataclass(eq=False)
class _Span:
    """Neighbouring parameters: elements start..stop of a block."""

    block: Block
    start: int
    stop: int

    w = property(lambda self: self.block.flat[self.start : self.stop])
    g = property(lambda self: self.block.grad[self.start : self.stop])


def _parameters(params: Params) -> list[Parameter]:
    """Every parameter that `params` names, once, in order."""
    found: dict[tuple[int, str], Parameter] = {}
    for part in (params,) if isinstance(params, (Module, Parameter)) else _iterate(params):
        for parameter in part.parameters() if isinstance(part, Module) else [part]:
            if not isinstance(parameter, Parameter) or parameter.name is None:
                given = "a part of a Parameter" if isinstance(parameter, Parameter) else type(parameter).__name__
                raise DtypeError(f"params must be Modules or Parameters, not {given}")
            found.setdefault((id(parameter._block), parameter.name), parameter)
    return list(found.values())


def _iterate(params: Any) -> Iterable[Any]:
    if isinstance(params, (Mapping, np.ndarray, str)) or not isinstance(params, Iterable):
        given = type(params).__name__
        raise DtypeError(f"params must be a Module or an iterable of Modules or Parameters, not {given}")
    return params


def _spans(parameters: list[Parameter]) -> tuple[list[_Span], list[tuple[int, slice]]]:
    """The spans that hold the parameters, whole blocks wherever possible; for each parameter its span and place."""
    spans: list[_Span] = []
    where: dict[tuple[int, str], tuple[int, slice]] = {}
    wanted = {(id(p._block), p.name) for p in parameters}
    for block in {id(p._block): p._block for p in parameters}.values():
        assert block is not None
        stop = 0
        for name, shape in block.shapes.items():
            start, stop = stop, stop + math.prod(shape)
            if (id(block), name) not in wanted:
                continue
            if spans and spans[-1].block is block and spans[-1].stop == start:
                spans[-1].stop = stop
            else:
                spans.append(_Span(block, start, stop))
            first = spans[-1].start
            where[id(block), name] = len(spans) - 1, slice(start - first, stop - first)
    return spans, [where[id(p._block), p.name] for p in parameters]  # type: ignore[index]


def _gradients(params: Params) -> list[np.ndarray]:
    """The flat gradients of what `params` names; of a module, whole blocks, without a look at each parameter."""
    if isinstance(params, Module):
        return [block.grad for block in params.blocks()]
    return [span.g for span in _spans(_parameters(params))[0]]


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, size)) for start in range(0, size, CHUNK))


# ---------------------------------------------------------------- optimisers


class Optimizer:
    """The base of `SGD`, `RMSprop`, `Adam` and `AdamW`.

    params  a Module, a Parameter, or an iterable of them; one that comes twice counts once
    lr      the learning rate; set it, or any other option, as an attribute at any time; the checks are the same

    Arguments, defaults and arithmetic are those of the namesake in torch.optim. Raises OptionError for an option
    that cannot be, DtypeError for params that are none.
    """

    BUFFERS: ClassVar[tuple[str, ...]]  # the names of what is remembered of a parameter from step to step

    lr: float
    initial_lr: float | None = None  # the rate before the first schedule, on which all are based
    _usual: ClassVar[dict[str, Any]] = {}  # the options, and what they are when not given
    _rule: Callable[[], Rule]  # of the step after `steps`

    def __init_subclass__(cls) -> None:
        own = list(inspect.signature(cls).parameters.values())[1:]
        cls._usual = cls._usual | {p.name: p.default for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def __init__(self, params: Params, **options: Any) -> None:
        self._all = _parameters(params)
        if not self._all:
            raise OptionError(f"{type(self).__name__} was given no parameters")
        self._spans, self._places = _spans(self._all)
        self._buffers: list[dict[str, np.ndarray]] = [{} for _ in self._spans]
        self._spare = {span.block.dtype: np.empty((2, CHUNK), span.block.dtype) for span in self._spans}
        self.steps = 0
        vars(self).update(self._checked(options))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._usual:
            value = self._checked({name: value})[name]
        super().__setattr__(name, value)

    def step(self) -> None:
        """Change every parameter by its gradient."""
        kernels, rule = c_kernels(), self._rule()
        before = self.steps, self._buffers
        if new := [name for name in rule.buffers.values() if name not in self._buffers[0]]:
            spans = zip(self._spans, self._buffers, strict=True)
            self._buffers = [{**buffers, **{name: np.zeros_like(span.w) for name in new}} for span, buffers in spans]
        vars(self)["steps"] += 1  # past __setattr__, which takes its time
        for span, buffers in zip(self._spans, self._buffers, strict=True):
            try:
                self._update(rule, span, {key: buffers[name] for key, name in rule.buffers.items()}, kernels)
            except FastrnnError:  # the kernel has refused; whatever else, such as an interrupt, comes when it is done
                if span is self._spans[0]:
                    self.steps, self._buffers = before
                raise
            finally:
                span.block.touch()

    def _update(self, rule: Rule, span: _Span, kept: dict[str, np.ndarray], kernels: ModuleType | None) -> None:
        w, g = span.w, span.g
        if kernels is not None:
            kernels.update(rule.kernel, rule.constants, w, g=g, **kept)
            return
        s, t = self._spare[w.dtype]
        with np.errstate(all="ignore"):  # inf and nan spread in silence, as they do in a kernel
            for piece in _pieces(w.size):
                size = piece.stop - piece.start
                rule.update(w[piece], g[piece], *[b[piece] for b in kept.values()], s[:size], t[:size])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradient of every parameter to zero. PyTorch's set_to_none makes no difference: none is None here."""
        for span in self._spans:
            span.g.fill(0)

    # ------------------------------------------------ options, in and out

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Some of the options, each as what it must be."""
        checked: dict[str, Any] = {}
        for name, value in options.items():
            if name == "betas":
                checked[name] = _betas(value)
            else:
                checked[name] = bool(value) if isinstance(self._usual[name], bool) else number(name, value, 0)
        return checked

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of steps, the options, and copies of the buffers.

        A flat mapping of names to numbers and arrays, which `np.savez` takes as it is. The buffers of the i-th
        parameter are under `"<buffer>.<i>"`, in its shape. `initial_lr` is there once a schedule has set it.
        """
        state: dict[str, Any] = {"steps": self.steps, **{name: getattr(self, name) for name in self._usual}}
        if self.initial_lr is not None:
            state["initial_lr"] = self.initial_lr
        for i, (parameter, (span, place)) in enumerate(zip(self._all, self._places, strict=True)):
            for name, buffer in self._buffers[span].items():
                state[f"{name}.{i}"] = buffer[place].reshape(parameter.shape).copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()` of an optimiser of the same kind over parameters of the same shapes.

        Raises ShapeError where it does not fit, OptionError and DtypeError for what its values cannot be; then
        nothing has changed.
        """
        _check_mapping(state)
        names = ["steps", *self._usual]
        if missing := [name for name in names if name not in state]:
            raise ShapeError(f"state_dict does not fit this {type(self).__name__}; missing: {', '.join(missing)}")
        buffers: list[dict[str, np.ndarray]] = [{} for _ in self._spans]
        left = {name for name in state if name not in [*names, "initial_lr"]}
        for name in self.BUFFERS:
            if not any(f"{name}.{i}" in left for i in range(len(self._all))):
                continue
            for i, (parameter, (k, place)) in enumerate(zip(self._all, self._places, strict=True)):
                key = f"{name}.{i}"
                if key not in left:
                    raise ShapeError(f"state_dict does not fit this {type(self).__name__}; missing: {key}")
                value = as_array(state[key], parameter.dtype, key)
                if value.shape != parameter.shape:
                    raise ShapeError(f"{key} must be {list(parameter.shape)}, not {list(value.shape)}")
                left.remove(key)
                whole = buffers[k].setdefault(name, np.zeros_like(self._spans[k].w))
                whole[place] = value.reshape(-1)
        if left:
            unknown = ", ".join(sorted(map(str, left)))
            raise ShapeError(f"state_dict does not fit this {type(self).__name__}; unexpected: {unknown}")
        changed = self._checked({name: state[name] for name in self._usual})
        changed["initial_lr"] = number("initial_lr", state["initial_lr"], 0) if "initial_lr" in state else None
        vars(self).update(changed, steps=integer("steps", state["steps"], 0), _buffers=buffers)

    def __repr__(self) -> str:
        values = {name: getattr(self, name) for name in self._usual}
        options = [f"{name}={value!r}" for name, value in values.items() if value != self._usual[name]]
        return f"{type(self).__name__}({', '.join(['...', *options])})"


class SGD(Optimizer):
    """Gradient descent, w -= lr g; with momentum b = momentum b + (1 - dampening) g and w -= lr b.

    nesterov      w -= lr (g + momentum b) (Nesterov 1983, as Sutskever et al. 2013 write it)
    weight_decay  adds weight_decay w to g

    The first step with momentum sets b = g, as PyTorch does. Arguments and errors: see `Optimizer`.
    """

    BUFFERS = ("momentum_buffer",)

    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super()._checked(options)
        both = {**vars(self), **checked}
        if both["nesterov"] and (both["momentum"] == 0 or both["dampening"] != 0):
            given = f"momentum={both['momentum']!r}, dampening={both['dampening']!r}"
            raise OptionError(f"nesterov needs momentum > 0 and dampening = 0, not {given}")
        return checked

    def _rule(self) -> Rule:
        lr, momentum, decay, nesterov = self.lr, self.momentum, self.weight_decay, self.nesterov
        fresh = 1 - self.dampening if "momentum_buffer" in self._buffers[0] else 1.0

        def update(w: np.ndarray, g: np.ndarray, *rest: np.ndarray) -> None:
            *buffers, s, t = rest
            g = _decayed(g, w, decay, t)
            for b in buffers:
                np.multiply(g, fresh, out=s)
                b *= momentum
                b += s
                if nesterov:
                    np.multiply(b, momentum, out=s)
                    g = np.add(g, s, out=s)
                else:
                    g = b
            w -= np.multiply(g, lr, out=s)

        constants = {"lr": lr, "momentum": momentum, "fresh": fresh, "decay": decay, "nesterov": nesterov}
        return Rule({"b": "momentum_buffer"} if momentum else {}, update, "sgd", constants)


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2 and w -= lr g / (sqrt(v) + eps) (Tieleman and Hinton 2012).

    centered      takes the square of the gradient's running mean off v (Graves 2013, eq. 38-45)
    momentum      w -= lr b with b = momentum b + g / (sqrt(v) + eps)
    weight_decay  adds weight_decay w to g

    Arguments and errors: see `Optimizer`.
    """

    BUFFERS = ("square_avg", "grad_avg", "momentum_buffer")

    alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def _rule(self) -> Rule:
        lr, alpha, eps, momentum, decay, centered = (
            self.lr, self.alpha, self.eps, self.momentum, self.weight_decay, self.centered,
        )  # fmt: skip

        def update(w: np.ndarray, g: np.ndarray, v: np.ndarray, *rest: np.ndarray) -> None:
            *buffers, s, t = rest
            g = _decayed(g, w, decay, t)
            _average(v, np.multiply(g, g, out=s), alpha, s)
            if centered:
                mean = buffers.pop(0)
                _average(mean, g, alpha, s)
                np.multiply(mean, mean, out=s)
                root = np.sqrt(np.subtract(v, s, out=s), out=s)
            else:
                root = np.sqrt(v, out=s)
            root += eps
            change = np.divide(g, root, out=s)
            for b in buffers:
                b *= momentum
                b += change
                change = b
            w -= np.multiply(change, lr, out=s)

        names = {"v": "square_avg"}
        if centered:
            names["mean"] = "grad_avg"
        if momentum:
            names["b"] = "momentum_buffer"
        constants = {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "decay": decay}
        return Rule(names, update, "rmsprop", constants)


class Adam(Optimizer):
    """Adaptive moments (Kingma and Ba 2015, algorithm 1).

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        w -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    betas         (b1, b2)
    weight_decay  adds weight_decay w to g
    amsgrad       takes for v the greatest so far (Reddi et al. 2018)

    Arguments and errors: see `Optimizer`.
    """

    BUFFERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    DECOUPLED: ClassVar[bool] = False

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    amsgrad: bool

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)

    def _rule(self) -> Rule:
        b1, b2 = self.betas
        shrink = 1 - self.lr * self.weight_decay if self.DECOUPLED else 1.0
        decay = 0.0 if self.DECOUPLED else self.weight_decay
        # lr m / (1 - b1^t) / (sqrt(v) / r + eps), r = sqrt(1 - b2^t), is (lr r / (1 - b1^t)) m / (sqrt(v) + r eps):
        # one pass less.
        t = self.steps + 1
        r = math.sqrt(1 - b2**t)
        rate, eps = self.lr * r / (1 - b1**t), self.eps * r

        def update(w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, *rest: np.ndarray) -> None:
            *greatest, s, t = rest
            if shrink != 1:
                w *= shrink
            g = _decayed(g, w, decay, t)
            _average(m, g, b1, s)
            _average(v, np.multiply(g, g, out=s), b2, s)
            for peak in greatest:
                v = np.maximum(peak, v, out=peak)
            np.sqrt(v, out=s)
            s += eps
            np.divide(m, s, out=s)
            s *= rate
            w -= s

        names = {"m": "exp_avg", "v": "exp_avg_sq"} | ({"peak": "max_exp_avg_sq"} if self.amsgrad else {})
        constants = {"b1": b1, "b2": b2, "rate": rate, "eps": eps, "shrink": shrink, "decay": decay}
        return Rule(names, update, "adam", constants)


class AdamW(Adam):
    """`Adam` whose weight_decay shrinks w by lr weight_decay w, past m and v (Loshchilov and Hutter 2019)."""

    DECOUPLED = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)


def _decayed(g: np.ndarray, w: np.ndarray, decay: float, t: np.ndarray) -> np.ndarray:
    """g + decay w, in t; g itself without decay."""
    if not decay:
        return g
    np.multiply(w, decay, out=t)
    return np.add(g, t, out=t)


def _average(m: np.ndarray, value: np.ndarray, decay: float, s: np.ndarray) -> None:
    """m = decay m + (1 - decay) value, by way of s."""
    np.multiply(value, 1 - decay, out=s)
    m *= decay
    m += s


# ---------------------------------------------------------------- clipping


def clip_grad_norm(params: Params, max_norm: float, norm_type: float = 2.0) -> float:
    """Scale the gradients so that all together have at most this norm, as torch.nn.utils.clip_grad_norm_ does.

    params as for `Optimizer`; norm_type p > 0, math.inf included. Returns the norm before, summed in float64.
    The factor is min(1, max_norm / (norm + 1e-6)) (Pascanu et al. 2013). A norm that is nan makes every gradient
    nan, and one that is inf makes all zero but what was inf, which becomes nan: look at what is returned before a
    step. Raises OptionError, DtypeError.
    """
    max_norm, p = number("max_norm", max_norm, 0), number("norm_type", norm_type, 0)
    if not p:
        raise OptionError(f"norm_type must be a number > 0, or math.inf, not {norm_type!r}")
    gradients, kernels = _gradients(params), c_kernels()
    total, spare = 0.0, np.empty(CHUNK)
    with np.errstate(all="ignore"):  # inf and nan show in the norm
        for g in gradients:
            if p == 2 and kernels is not None:
                total += kernels.sum_of_squares(g)
                continue
            for piece in _pieces(g.size):
                a = np.abs(g[piece], out=spare[: piece.stop - piece.start])
                if math.isinf(p):
                    total = float(np.maximum(total, a.max()))  # which, unlike max(), passes nan on
                else:
                    total += float((np.square(a, out=a) if p == 2 else np.power(a, p, out=a)).sum())
        norm = total if math.isinf(p) else total ** (1 / p)
        factor = max_norm / (norm + 1e-6)
        for g in gradients if not factor >= 1 else ():
            if kernels is not None:
                kernels.scale(g, factor)
            else:
                g *= factor
    return norm


def clip_grad_value(params: Params, clip_value: float) -> None:
    """Bound every element of the gradients to -clip_value..clip_value, as torch.nn.utils.clip_grad_value_ does.

    nan stays. params as for `Optimizer`. Raises OptionError, DtypeError.
    """
    bound = number("clip_value", clip_value, 0)
    for g in _gradients(params):
        np.clip(g, -bound, bound, out=g)


# ---------------------------------------------------------------- schedules


class Schedule:
    """The base of the schedules: each call of `step()` sets `optimizer.lr` for the next epoch.

    Call it after the optimiser's. The schedules multiply the rate as it is, so that several of them, or an assignment
    to `optimizer.lr`, go together, as PyTorch's do; what they call the optimiser's rate is that before the first of
    them, `optimizer.initial_lr`. `state_dict()` holds plain numbers.
    """

    BASED: ClassVar[bool] = True  # on the rate before the first schedule: else a later one starts from what it finds

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise DtypeError(f"optimizer must be an Optimizer of fastrnn.optim, not {type(optimizer).__name__}")
        self.optimizer, self.last_epoch = optimizer, 0
        self.base_lr = optimizer.lr if optimizer.initial_lr is None else optimizer.initial_lr
        optimizer.lr = self._next(optimizer.lr)
        if self.BASED:
            optimizer.initial_lr = self.base_lr

    def step(self) -> None:
        """One epoch is over; OptionError where its rate cannot be."""
        self.last_epoch += 1
        try:
            self.optimizer.lr = self._next(self.optimizer.lr)
        except BaseException:
            self.last_epoch -= 1
            raise

    def _next(self, lr: float) -> float:
        """The rate of epoch `last_epoch`, from that of the one before; at epoch 0 from the optimiser's."""
        return lr

    def get_last_lr(self) -> list[float]:
        """[the learning rate in force]"""
        return [self.optimizer.lr]

    def state_dict(self) -> dict[str, Any]:
        """The numbers that change from step to step; the optimiser's own state holds its rate."""
        return {"base_lr": self.base_lr, "last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict()` of a schedule of the same kind.

        Raises OptionError where it is of another or a value cannot be, DtypeError for what is no mapping; then nothing
        has changed.
        """
        _check_mapping(state)
        now = self.state_dict()
        if now.keys() != set(state):
            given = ", ".join(map(str, state))
            raise OptionError(f"the state of a {type(self).__name__} has {', '.join(now)}, not {given}")
        changed = {}
        for name, value in state.items():
            least = None if name == "best" else 0  # the best of a metric, which may be any number
            changed[name] = integer(name, value, 0) if isinstance(now[name], int) else number(name, value, least)
        vars(self).update(changed)

    def __repr__(self) -> str:
        options = [f"{name}={getattr(self, name)!r}" for name in list(inspect.signature(type(self)).parameters)[1:]]
        return f"{type(self).__name__}({', '.join(['...', *options])})"


class LambdaLR(Schedule):
    """The optimiser's rate times lr_lambda(epoch), for a warm-up such as `lambda n: min(1, (n + 1) / 1000)`."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        if not callable(lr_lambda):
            raise DtypeError(f"lr_lambda must be a function of the epoch, not {lr_lambda!r}")
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def _next(self, lr: float) -> float:
        return self.base_lr * self.lr_lambda(self.last_epoch)


class LinearLR(Schedule):
    """A factor that goes from start_factor to end_factor in total_iters steps: a warm-up."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = number("start_factor", start_factor, 0)
        self.end_factor = number("end_factor", end_factor, 0)
        self.total_iters = integer("total_iters", total_iters, 1)
        if not 0 < self.start_factor <= 1 or not self.end_factor <= 1:
            raise OptionError(f"factors must be within 0..1, the start's above 0, not {start_factor!r}, {end_factor!r}")
        super().__init__(optimizer)

    def _next(self, lr: float) -> float:
        epoch, left = self.last_epoch, self.total_iters - self.last_epoch
        if epoch == 0:
            return lr * self.start_factor
        if left < 0:
            return lr
        # total_iters times the factor of this epoch and that of the one before: as sums, which rounding leaves >= 0.
        factor = self.start_factor * left + self.end_factor * epoch
        return lr * (factor / (self.start_factor * (left + 1) + self.end_factor * (epoch - 1)))


class StepLR(Schedule):
    """The rate times gamma every step_size epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = integer("step_size", step_size, 1), number("gamma", gamma, 0)
        super().__init__(optimizer)

    def _next(self, lr: float) -> float:
        return lr if self.last_epoch == 0 or self.last_epoch % self.step_size else lr * self.gamma


class ExponentialLR(Schedule):
    """The rate times gamma every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = number("gamma", gamma, 0)
        super().__init__(optimizer)

    def _next(self, lr: float) -> float:
        return lr if self.last_epoch == 0 else lr * self.gamma


class CosineAnnealingLR(Schedule):
    """From the optimiser's rate to eta_min in T_max epochs along half a cosine (Loshchilov and Hutter 2017, eq. 5).

    Past T_max it comes back up, as PyTorch's does; but it stays at 0 where other schedules, which leave a rate
    below eta_min, or rounding would take PyTorch's below 0.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = integer("T_max", T_max, 1), number("eta_min", eta_min, 0)
        super().__init__(optimizer)

    def _next(self, lr: float) -> float:
        epoch, period = self.last_epoch, self.T_max
        if epoch == 0:
            return lr
        if (epoch - 1 - period) % (2 * period) == 0:  # at the bottom, where the ratio below would be 0 / 0
            rate = lr + (self.base_lr - self.eta_min) * (1 - math.cos(math.pi / period)) / 2
        else:
            ratio = (1 + math.cos(math.pi * epoch / period)) / (1 + math.cos(math.pi * (epoch - 1) / period))
            rate = ratio * (lr - self.eta_min) + self.eta_min
        return max(rate, 0.0)


class ReduceLROnPlateau(Schedule):
    """The rate times factor when the metric given to `step(metrics)` has not improved for more than patience epochs.

    mode             "min" or "max": which is better
    factor           < 1
    threshold, threshold_mode  an improvement is by more than threshold, "rel" (of the best) or "abs"
    cooldown         epochs after a cut that do not count as bad
    min_lr, eps      the least rate; a cut of no more than eps is not made
    """

    BASED = False

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("min", "max"):
            raise OptionError(f"unknown mode {mode!r}; there are 'min', 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise OptionError(f"unknown threshold_mode {threshold_mode!r}; there are 'rel', 'abs'")
        if not number("factor", factor, 0) < 1:
            raise OptionError(f"factor must be a number < 1, not {factor!r}")
        self.mode, self.factor, self.threshold_mode = mode, factor, threshold_mode
        self.patience, self.cooldown = integer("patience", patience, 0), integer("cooldown", cooldown, 0)
        self.threshold, self.min_lr = number("threshold", threshold, 0), number("min_lr", min_lr, 0)
        self.eps = number("eps", eps, 0)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def step(self, metrics: float) -> None:  # type: ignore[override]
        """One epoch is over, with this value of the metric; nan is no improvement."""
        value = number("metrics", metrics)
        self.last_epoch += 1
        if self._better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            lr = max(self.optimizer.lr * self.factor, self.min_lr)
            if self.optimizer.lr - lr > self.eps:
                self.optimizer.lr = lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _better(self, value: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1 + sign * self.threshold)
        return sign * value > sign * self.best + self.threshold

    def state_dict(self) -> dict[str, Any]:
        names = "best", "num_bad_epochs", "cooldown_counter"
        return {**super().state_dict(), **{name: getattr(self, name) for name in names}}


# ---------------------------------------------------------------- arguments


def _betas(value: Any) -> tuple[float, float]:
    try:
        b1, b2 = (number("a beta", beta, 0) for beta in value)
    except (TypeError, ValueError) as error:
        raise OptionError(f"betas must be two numbers within 0..1, 1 excluded, not {value!r}") from error
    if not (b1 < 1 and b2 < 1):
        raise OptionError(f"betas must be two numbers within 0..1, 1 excluded, not {value!r}")
    return b1, b2


def _check_mapping(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise DtypeError(f"state_dict must be a mapping of names to numbers and arrays, not {type(state).__name__}")
