"""Features of model folders, computed by stock open_clip: `python stock.py OUT.npz FOLDER...`."""

import sys

import numpy as np
import pico
import torch
from PIL import Image


def main(out: str, folders: list[str]) -> None:
    picture = Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3))
    found = {}
    for folder in folders:
        name = f"local-dir:{folder}"
        model, _, preprocess = pico.open_clip.create_model_and_transforms(name)
        tokenizer = pico.open_clip.get_tokenizer(name)
        model.eval()
        with torch.no_grad():
            image = model.encode_image(pico.images(), normalize=False)
            text = model.encode_text(tokenizer(pico.PROMPTS), normalize=False)
        found[f"{folder} image"] = image.numpy()
        found[f"{folder} text"] = text.numpy()
        found[f"{folder} picture"] = preprocess(picture).numpy()
    assert not any(module.startswith("nullspace_unlearn") for module in sys.modules)
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
