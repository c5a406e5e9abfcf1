# ruff: noqa: F821  (a part of tests/support/cases.py)
def adadelta_update(A, p, g, s, d, step, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    g = _l2(A, p, g, weight_decay)
    lr, rho, eps = A.number(lr), A.number(rho), A.round(A.number(eps))
    s = A.fma(A.round(1 - rho) * g, g, A.round(rho) * s)
    delta = A.sqrt(d + eps) / A.sqrt(s + eps) * g
    d = A.fma(A.round(1 - rho) * delta, delta, A.round(rho) * d)
    return A.fma(A.round(-lr), delta, p), s, d


OPTIMIZERS += (
    Optimizer(
        "adadelta",
        "Adadelta",
        adadelta_update,
        (State("square_avgs", "square_avg", non_negative=True), State("acc_deltas", "acc_delta", non_negative=True)),
        settings=(
            {},
            {"lr": 0.3},
            {"rho": 0.7},
            {"eps": 1e-2},
            {"weight_decay": 0.3},
            {"maximize": True},
            {"lr": 0.2, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
        ),
    ),
)
