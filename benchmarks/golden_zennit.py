"""Writes the golden numbers of tests/golden: relevance by zennit 0.5.1 and captum 0.9 on small networks.

    pip install zennit==0.5.1 captum==0.9.0
    python benchmarks/golden_zennit.py

One `.npz` a network: its weights, input, output and target, and relevance of the input under each preset.
The networks are those of tests/golden/networks.py, which the test uses too. A `.json` states the source.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from golden.networks import NETWORKS, SEED, sample  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


def zennit_relevance(network: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Relevance by each composite from the target's score. Batch normalisation is merged."""
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import COMPOSITES

    from relprop.engine.presets import HIGH, LOW

    class Merge(SequentialMergeBatchNorm):
        """zennit 0.5.1 leaves the variance's eps in a merged batch normalisation; eps = 0 makes it exact."""

        def register(self, linears, batch_norm):  # type: ignore[no-untyped-def]
            self.eps = batch_norm.eps
            super().register(linears, batch_norm)
            batch_norm.eps = 0.0

        def remove(self) -> None:
            self.batch_norm.eps = self.eps
            super().remove()

    names = ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat",
             "epsilon_gamma_box", "excitation_backprop")  # fmt: skip
    found = {}
    for name in names:
        bounds = {"low": LOW[None].to(x), "high": HIGH[None].to(x)} if name == "epsilon_gamma_box" else {}
        composite = COMPOSITES[name](canonizers=[Merge()], **bounds)
        rows = []
        for i in range(len(x)):
            with Gradient(network, composite) as attributor:
                seed = torch.zeros(1, 10, dtype=x.dtype)
                seed[0, target[i]] = 1
                _, relevance = attributor(x[i : i + 1].clone(), lambda y, seed=seed: y * seed)
            rows.append(relevance)
        found[f"zennit/{name}"] = torch.cat(rows)
    return found


def captum_relevance(network: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Relevance by captum's default rules. captum starts at 1 and multiplies by the output."""
    from captum.attr import LRP

    return {"captum/default": LRP(network).attribute(x.clone(), target=target).detach()}


def main() -> None:
    for name, build in NETWORKS.items():
        network, x = build(), sample()
        with torch.no_grad():
            output = network(x)
        target = output.argmax(1)
        arrays = {f"weight/{key}": value.numpy().copy() for key, value in network.state_dict().items()}
        arrays |= {"input": x.numpy(), "target": target.numpy(), "output": output.numpy()}
        relevance = zennit_relevance(build(), x, target) | captum_relevance(build(), x, target)
        arrays |= {f"relevance/{key}": value.detach().numpy() for key, value in relevance.items()}
        np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)
        about = {
            "what": "relevance of the input under presets of other toolboxes, from the target's score",
            "script": "benchmarks/golden_zennit.py",
            "seed": SEED,
            "versions": {p: version(p) for p in ("zennit", "captum", "torch", "numpy")},
            "presets": sorted(relevance),
        }
        (GOLDEN / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
        print(name, {key: tuple(value.shape) for key, value in arrays.items() if key.startswith("relevance")})


if __name__ == "__main__":
    main()
