"""Classifies an image with the graph of an unpacked bundle, in ONNX Runtime alone.

    tar -xf lenet-fp32.tar.zst
    python onnxruntime_client.py lenet-fp32 image.png

Needs `pip install onnxruntime pillow`. It proves nothing: `assay check` does, or `assay.load`,
which also takes the fastest engine.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) != 3:
    sys.exit(__doc__)
folder, path = Path(sys.argv[1]), sys.argv[2]
manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
graph = next(iter(manifest["models"].values()))["graph"]  # the model at one of its precisions
session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
(spec,) = session.get_inputs()
_, channels, height, width = spec.shape
image = Image.open(path).convert("L" if channels == 1 else "RGB").resize((width, height))
batch = np.asarray(image).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
logits = session.run(None, {spec.name: batch})[0]  # uint8: the graph does the rest
print(f"before the graph: {manifest['before'] or 'nothing'}; in it: {manifest['preprocessing']}")
print(manifest["labels"][logits[0].argmax()])
