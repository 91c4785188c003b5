"""Loss and score curves of a run as one PNG (the `plot` extra: matplotlib)."""

import pathlib

from training.metrics import read_metrics


def plot_curves(workdir: pathlib.Path) -> pathlib.Path:
    """Draws WORKDIR/metrics.jsonl: training loss on the left, evaluation scores on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(workdir)
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "loss" not in line]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot([line["step"] for line in training], [line["loss"] for line in training], linewidth=0.8)
    left.set(title="contrastive loss", xlabel="step", ylabel="nats")
    names = [name for name in (evaluations[0] if evaluations else {}) if name not in ("step", "evaluation_seconds")]
    for name in names:
        points = [(line["step"], line[name]) for line in evaluations if name in line]
        right.plot(*zip(*points), marker="o", markersize=3, label=f"{name}: {points[0][1]:.1f} → {points[-1][1]:.1f}")
    right.set(title="held-out scores", xlabel="step", ylabel="× 100")
    if names:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
