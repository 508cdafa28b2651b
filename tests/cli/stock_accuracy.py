"""By stock open_clip: `stock_accuracy.py DATA TEMPLATES CLASSES FOLDER...`; names are JSON."""

import json
import sys
from pathlib import Path

import open_clip
import torch
from PIL import Image


def accuracy(folder: str, data: str, templates: list[str], classes: list[str]) -> list[list[float]]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        rows = []
        for name in classes:
            prompts = [template.replace("{class}", name) for template in templates]
            features = model.encode_text(tokenizer(prompts), normalize=True)
            rows.append(torch.nn.functional.normalize(features.mean(0), dim=0))
        classifier = torch.stack(rows)
        grid: list[list[float]] = []
        for c, name in enumerate(classes):
            grid.append([])
            for domain in sorted(Path(data).iterdir()):
                files = sorted((domain / name).iterdir())
                images = torch.stack([preprocess(Image.open(file)) for file in files])
                predicted = (model.encode_image(images) @ classifier.T).argmax(-1)
                grid[-1].append((predicted == c).double().mean().item())
    return grid


def main(data: str, templates: str, classes: str, *folders: str) -> None:
    names = json.loads(templates), json.loads(classes)
    grids = [accuracy(folder, data, *names) for folder in folders]
    assert not any(module.startswith("nullspace_unlearn") for module in sys.modules)
    print(json.dumps(grids))


if __name__ == "__main__":
    main(*sys.argv[1:])
