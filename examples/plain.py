"""RePr in an ordinary training loop: the three marked lines are all there is to it.

python examples/plain.py --epochs 30
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import torchreaper as tr


def main() -> None:
    """Train a small convnet on scikit-learn's handwritten digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    epochs = parser.parse_args().epochs
    if epochs < 7:
        parser.error(f"argument --epochs: {epochs}: two cycles take 6, and training goes on after them; give 7 or more")
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train, test = order[:300], order[300:]

    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 64, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    unit = max(1, epochs // 10)
    scheme = tr.RePr(model, optimizer, images[:2], full=2 * unit, sub=unit, cycles=2)  # 1: attach
    print(scheme)

    for epoch in range(1, epochs + 1):
        model.train()
        for batch in train[torch.randperm(len(train))].split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[test]).argmax(1) == labels[test]).double().mean()
        print(f"epoch {epoch:3d}  {scheme.phase:4s}  test accuracy {100 * accuracy:.2f} %")
        scheme.step()  # 2: once an epoch
    scheme.remove()  # 3: the model is an ordinary one again


if __name__ == "__main__":
    main()
