"""Makes perceptual.npz: outputs of SqueezeNet 1.1 + LPIPS heads and of dilated Med3D networks, in PyTorch.

Run from the root of the checkout in an environment with torch (not needed by the tests themselves):

    python tests/golden/make_perceptual.py

The networks are built here from their published structure and run in float64; the weights are drawn as in the
tests, so that only outputs are stored.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "models/features"))

from perceptual_weights import draw, images, squeeze_weights  # noqa: E402


class Fire(nn.Module):
    def __init__(self, c_in, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()

        def pool():
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            pool(),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            pool(),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            pool(),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )

    def forward(self, x):
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in (1, 4, 7, 9, 10, 11, 12):
                maps.append(x)
        return maps


def unit(x):
    return x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10)


def lpips(network, heads, x, y):
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)
    total = 0
    for a, b, head in zip(network((x - shift) / scale), network((y - shift) / scale), heads, strict=True):
        total = total + F.conv2d((unit(a) - unit(b)) ** 2, head).mean((2, 3), keepdim=True)
    return total.flatten()


def conv3(c_in, c_out, size, stride=1, dilation=1):
    return nn.Conv3d(c_in, c_out, size, stride=stride, dilation=dilation, padding=dilation * (size // 2), bias=False)


class Subsample(nn.Module):
    """The shortcut without weights ("type A"): every stride-th voxel, and zeros for the channels that come in."""

    def __init__(self, more, stride):
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x):
        return F.pad(F.avg_pool3d(x, 1, self.stride), (0, 0, 0, 0, 0, 0, 0, self.more))


class Block(nn.Module):
    def __init__(self, c_in, width, stride, dilation, bottleneck, projection):
        super().__init__()
        c_out = 4 * width if bottleneck else width
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1, self.conv2 = conv3(c_in, width, 1), conv3(width, width, 3, stride, dilation)
            self.conv3, self.bn3 = conv3(width, c_out, 1), nn.BatchNorm3d(c_out)
        else:
            self.conv1, self.conv2 = (
                conv3(c_in, width, 3, stride, dilation),
                conv3(width, width, 3, 1, dilation),
            )
        self.bn1, self.bn2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.downsample = None
        if (stride != 1 or c_in != c_out) and not projection:
            self.downsample = Subsample(c_out - c_in, stride)
        elif stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv3d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm3d(c_out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class MedicalNet(nn.Module):
    def __init__(self, blocks, bottleneck, projection):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm3d(64)
        channels = 64
        plan = zip(blocks, (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for stage, (count, width, stride, dilation) in enumerate(plan, start=1):
            layers = []
            for i in range(count):
                layers.append(Block(channels, width, stride if i == 0 else 1, dilation, bottleneck, projection))
                channels = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def whole_z(x):
    return (x - x.mean()) / x.std()


@torch.no_grad()
def main():
    torch.set_default_dtype(torch.float64)
    out = {}

    tensors = {name: torch.tensor(value).double() for name, value in squeeze_weights().items()}
    network = SqueezeNet()
    network.load_state_dict({name: value for name, value in tensors.items() if name.startswith("features.")})
    heads = [tensors[f"lin{i}.model.1.weight"] for i in range(7)]
    for shape in ((3, 40, 51, 1), (2, 37, 34, 1)):
        x, y = (torch.tensor(images(seed, shape)).double().permute(0, 3, 1, 2) for seed in (1, 2))
        out[f"lpips_{shape[1]}x{shape[2]}"] = lpips(network, heads, x, y).numpy()

    for depth, blocks in {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}.items():
        network = MedicalNet(blocks, depth == 50, depth in (10, 50)).eval()
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim}
        named = {name: torch.tensor(draw(name, shape)).double() for name, shape in shapes.items()}
        network.load_state_dict(named, strict=False)
        x, y = (torch.tensor(images(seed, (2, 40, 33, 48, 1))).double().permute(0, 4, 1, 2, 3) for seed in (1, 2))
        out[f"resnet{depth}_parameters"] = np.array(sum(p.numel() for p in network.parameters()))
        each = torch.stack([(v - v.mean()) / v.std(correction=0) for v in x])
        pooled = network(each).mean((2, 3, 4)).numpy()
        out[f"resnet{depth}_pooled"] = pooled[:, :: pooled.shape[1] // 64]
        difference = (unit(network(whole_z(x))) - unit(network(whole_z(y)))) ** 2
        out[f"resnet{depth}_distance"] = difference.sum(1).mean((1, 2, 3)).numpy()

    np.savez_compressed(HERE / "perceptual.npz", **out)
    for name, value in out.items():
        print(name, value.shape, value.ravel()[:4])


if __name__ == "__main__":
    main()
