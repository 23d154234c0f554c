"""Where the arithmetic of the estimators is tested: always on the CPU, and on a GPU where there is one."""

import pytest
import torch

_no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _no_gpu])]
on_each_device = pytest.mark.parametrize("device", DEVICES)
