"""Loss and score curves of a run as one PNG (the `plot` extra: matplotlib)."""

import pathlib

from evaluation.report.curves import curves_of, read_metrics


def plot_curves(workdir: pathlib.Path) -> pathlib.Path:
    """Draws WORKDIR/metrics.jsonl: training loss on the left, evaluation scores on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = curves_of(read_metrics(workdir / "metrics.jsonl"))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    if curves.loss:
        left.plot(*zip(*curves.loss), linewidth=0.8)
    left.set(title=curves.loss_title, xlabel="step", ylabel=curves.loss_unit)
    for name, points in curves.scores.items():
        right.plot(*zip(*points), marker="o", markersize=3, label=f"{name}: {points[0][1]:.1f} → {points[-1][1]:.1f}")
    right.set(title="held-out scores", xlabel="step", ylabel="× 100")
    if curves.scores:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
