"""Table files of `kind: noise_multipliers`: the noise that each accountant asks for, and what that noise really costs.

    kind: noise_multipliers
    title: what the table shows
    paper: "2210.15042"         # arXiv id
    rows:
      - {setting: B2000 50ep, data: SST-2, dataset_size: 67349, batch_size: 2000, epochs: 50, delta: 1.0e-5, epsilon: 8}
    notes: [printed below the table]

Pure arithmetic: no run, model or data set is needed. delta is a number or "1/2N". A saving is how much less noise than
RDP asks for; where the noise breaks the budget it is no saving, and the price is printed in its place.
"""

import math
from collections.abc import Callable
from typing import Any

from privlm.privacy import accounting
from privlm.report.table import Table

# column title -> (accountant, order) of the noise multiplier; GDP and the Edgeworth estimates (AEA) are no guarantees
_SIGMAS = {
    "RDP": ("rdp", 2),
    "GDP": ("gdp", 2),
    "AEA-1": ("edgeworth", 1),
    "AEA-2": ("edgeworth", 2),
    "AEA-3": ("edgeworth", 3),
    "PLD": ("pld", 2),
}
_PRICED = ("AEA-2", "AEA-3", "GDP")
_INTERVAL = 2e-4  # of the PLD behind these prices: half the time of a certificate, at most 1e-3 above it


def noise_table(spec: dict[str, Any], progress: Callable[[int, int], None] | None = None) -> Table:
    """Computes all rows of `spec`, about 2 s of CPU time each; `progress(done, total)` is called after each one."""
    values = []
    for done, row in enumerate(spec["rows"], start=1):
        values.append(_row(row))
        if progress is not None:
            progress(done, len(spec["rows"]))
    columns = [
        *("setting", "data", "q", "T", "delta", "target eps"),
        *(f"sigma {name}{' (certified)' if name == 'PLD' else ''}" for name in _SIGMAS),
        *(f"real eps at {name}" for name in _PRICED),
        *("saving PLD %", "saving AEA-2 %"),
    ]
    return Table(
        name=spec["name"],
        title=spec["title"],
        columns=columns,
        rows=[_cells(row) for row in values],
        notes=[*spec["notes"], *_large_deltas(values)],
        values=values,
    )


def _row(row: dict[str, Any]) -> dict[str, Any]:
    size, batch = row["dataset_size"], row["batch_size"]
    rate, steps = batch / size, accounting.num_steps(row["epochs"], size, batch)
    delta = accounting.resolve_delta(row["delta"], size)

    def sigma(accountant: str, order: int) -> float:
        return accounting.noise_multiplier(
            target_epsilon=row["epsilon"],
            delta=delta,
            sampling_rate=rate,
            steps=steps,
            accountant=accountant,
            order=order,
        ).noise_multiplier

    def real_epsilon(noise_multiplier: float) -> float:
        segments = [accounting.Segment(rate, noise_multiplier, steps)]
        return accounting.epsilon(segments, delta, discretization=_INTERVAL).epsilon

    sigmas = {name: sigma(*choice) for name, choice in _SIGMAS.items()}
    real = {name: real_epsilon(sigmas[name]) for name in _PRICED}
    saving = {name: 100 * (1 - sigmas[name] / sigmas["RDP"]) for name in ("PLD", "AEA-2")}
    return {
        "setting": row["setting"],
        "data": row["data"],
        "dataset_size": size,
        "sampling_rate": rate,
        "steps": steps,
        "delta": delta,
        "target_epsilon": row["epsilon"],
        **{f"sigma_{name}": value for name, value in sigmas.items()},
        **{f"real_epsilon_{name}": value for name, value in real.items()},
        "saving_PLD_percent": saving["PLD"],
        "saving_AEA-2_percent": saving["AEA-2"] if real["AEA-2"] <= row["epsilon"] else None,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    target = row["target_epsilon"]
    real = {name: row[f"real_epsilon_{name}"] for name in _PRICED}
    saving = row["saving_AEA-2_percent"]
    return [
        row["setting"],
        row["data"],
        f"{row['sampling_rate']:.6f}",
        str(row["steps"]),
        f"{row['delta']:.3g}",
        f"{target:g}",
        *(f"{row[f'sigma_{name}']:.4f}" for name in _SIGMAS if name != "PLD"),
        f"{math.ceil(row['sigma_PLD'] * 1e4) / 1e4:.4f}",  # rounded up: the printed noise keeps the budget too
        *(f"{value:.3f}{' !' if value > target else ''}" for value in real.values()),
        f"{row['saving_PLD_percent']:.2f}",
        f"{saving:.2f}" if saving is not None else f"invalid (spends {real['AEA-2']:.3f})",
    ]


def _large_deltas(values: list[dict[str, Any]]) -> list[str]:
    data = dict.fromkeys(row["data"] for row in values if row["delta"] * row["dataset_size"] >= 1)
    return [f"delta >= 1/N, a weak promise, in rows of: {', '.join(data)}"] if data else []
