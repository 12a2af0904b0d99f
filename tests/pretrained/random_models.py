"""Small models of PyTorch with every weight random, so that no two are alike."""

import re
from typing import Any

import torch


def randomised(model: Any, seed: int = 0, scale: float = 0.2) -> Any:
    """Fills all weights with noise; scales lie about 1, and variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif re.search(r"norm\w*\.weight$", name.lower()):
            tensor.copy_(1 + scale * noise)
        else:
            tensor.copy_(scale * noise)
    return model.eval()
