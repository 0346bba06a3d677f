"""Polynomials of csrc/vmath.h: minimax fits by the Remez exchange, coefficients rounded one by one.

Each coefficient is rounded to the element type before the higher ones are fitted again, so that
they make up for its rounding. Run ``python tests/ulp/fit.py`` to print them all as C tables, each
with its interval and its error (relative to the function, before rounding errors of evaluation).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from mpmath import mp, mpf  # type: ignore[import-untyped]

mp.dps = 100
Function = Callable[[mpf], mpf]


def rounded(x: mpf, bits: int) -> mpf:
    """Return x rounded to float32 or float64."""
    if bits == 64:
        return mpf(float(x))
    with mp.workprec(24):
        return +x


def minimax(f: list[mpf], w: list[mpf], x: list[mpf], n: int) -> list[mpf]:
    """Coefficients c of the polynomial that minimises max |w (f - sum c_j x^j)| on the points x."""
    m = len(x)
    at = [round((m - 1) * (1 - mp.cos(mp.pi * i / n)) / 2) for i in range(n + 1)]
    best: list[mpf] = []
    least = mp.inf
    for _ in range(60):
        a = mp.matrix(n + 1, n + 1)
        b = mp.matrix(n + 1, 1)
        for row, i in enumerate(at):
            for j in range(n):
                a[row, j] = x[i] ** j
            a[row, n] = (-1) ** row / w[i]
            b[row] = f[i]
        solution = mp.lu_solve(a, b)
        c = [solution[j] for j in range(n)]
        level = abs(solution[n])
        error = [w[i] * (f[i] - mp.polyval(c[::-1], x[i])) for i in range(m)]
        worst = max(range(m), key=lambda i: abs(error[i]))
        if abs(error[worst]) < least:
            best, least = c, abs(error[worst])
        if abs(error[worst]) < level * mpf("1.001"):
            break
        # exchange one point: the worst takes the place of the neighbour that has its sign
        after = next((j for j, i in enumerate(at) if i >= worst), n + 1)
        if after == 0:
            if (error[worst] > 0) == (error[at[0]] > 0):
                at[0] = worst
            else:
                at = [worst, *at[:-1]]
        elif after == n + 1:
            if (error[worst] > 0) == (error[at[-1]] > 0):
                at[-1] = worst
            else:
                at = [*at[1:], worst]
        elif (error[worst] > 0) == (error[at[after]] > 0):
            at[after] = worst
        else:
            at[after - 1] = worst
    return best


def fit(
    f: Function, w: Function, low: float | mpf, high: float | mpf, n: int, bits: int
) -> tuple[list[mpf], mpf]:
    """n rounded coefficients, lowest first, of f on [low, high], and the largest |w (f - p)|."""
    m = 40 * n
    low, high = mpf(low), mpf(high)
    x = [low + (high - low) * (1 - mp.cos(mp.pi * (i + mpf(1) / 2) / m)) / 2 for i in range(m)]
    weights = [w(t) for t in x]
    values = [f(t) for t in x]
    coefficients: list[mpf] = []
    rest = values
    scaled = weights
    for left in range(n, 0, -1):
        c = rounded(minimax(rest, scaled, x, left)[0], bits)
        coefficients.append(c)
        rest = [(r - c) / t for r, t in zip(rest, x, strict=True)]
        scaled = [s * abs(t) for s, t in zip(scaled, x, strict=True)]
    error = max(
        abs(wt * (v - mp.polyval(coefficients[::-1], t)))
        for wt, v, t in zip(weights, values, x, strict=True)
    )
    return coefficients, error


def literal(c: mpf, bits: int) -> str:
    """Return the hexadecimal C literal of a rounded number."""
    mantissa, exponent = float(c).hex().split("p")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}p{exponent}" + ("f" if bits == 32 else "")


# name: (function of the polynomial's variable, weight, low, high, coefficients in f32, in f64)
half_ln2 = mp.log(2) / 2 * mpf("1.0001")


def q_exp(r: mpf) -> mpf:
    return (mp.expm1(r) - r) / r**2


def p_log(f: mpf) -> mpf:
    return (mp.log1p(f) - f + f * f / 2) / f**3


def p_tanh(u: mpf) -> mpf:
    x = mp.sqrt(u)
    return (mp.tanh(x) / x - 1) / u


def p_erf(u: mpf) -> mpf:
    x = mp.sqrt(u)
    return mp.erf(x) / x - 1


def p_atanh(u: mpf) -> mpf:
    s = mp.sqrt(u)
    return (2 * mp.atanh(s) / s - 2 - 2 * u / 3) / u**2


def tail(a: mpf) -> mpf:
    """Return Phi(-a) exp(a^2 / 2), Mills' ratio over sqrt(2 pi)."""
    return mp.erfc(a / mp.sqrt(2)) / 2 * mp.exp(a * a / 2)


def tail_of(c: mpf, s: mpf) -> Function:
    """Return tail(a) (a + c) as a function of t = (a - s) / (a + c)."""

    def f(t: mpf) -> mpf:
        a = (s + c * t) / (1 - t)
        return tail(a) * (a + c)

    return f


def inverse(f: Function) -> Function:
    """Return 1 / f."""
    return lambda t: 1 / f(t)


def report(name: str, f: Function, w: Function, low: mpf, high: mpf, n: int, bits: int) -> None:
    c, error = fit(f, w, low, high, n, bits)
    interval = f"[{mp.nstr(low, 6)}, {mp.nstr(high, 6)}]"
    print(f"{name} f{bits} {interval} error 2^{mp.nstr(mp.log(error, 2), 4)}")
    print("    {" + ", ".join(literal(t, bits) for t in c) + "}")
    sys.stdout.flush()


def main() -> None:
    """Print every table."""
    low, high = mp.sqrt(mpf(1) / 2) - 1, mp.sqrt(2) - 1
    tiny = mpf("1e-6")
    for bits, n_exp, n_log, n_tanh, n_erf, n_atanh, n_tail, shift, centre, most in (
        (32, 6, 9, 5, 6, 3, 11, "3", "1.5", 15),
        (64, 11, 20, 11, 11, 7, 24, "4", "3", 39),
    ):
        c, s = mpf(shift), mpf(centre)
        ratio = tail_of(c, s)
        report("exp", q_exp, abs, -half_ln2, half_ln2, n_exp, bits)
        report("tanh", p_tanh, abs, tiny, mpf("0.55") ** 2, n_tanh, bits)
        report("erf", p_erf, lambda u: 1 / (1 + p_erf(u)), tiny, mpf("0.75") ** 2, n_erf, bits)
        report("atanh", p_atanh, lambda u: u * u / 2, tiny, mpf("0.02944"), n_atanh, bits)
        report("log", p_log, lambda f: abs(f**3 / mp.log1p(f)), low, high, n_log, bits)
        report("tail", ratio, inverse(ratio), -s / c, (most - s) / (most + c), n_tail, bits)


if __name__ == "__main__":
    main()
