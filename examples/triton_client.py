"""Classifies an image with a server that serves a bundle: Triton, or `assay serve`.

    tar -xf lenet-fp32.tar.zst
    python triton_client.py lenet-fp32 127.0.0.1:8000 image.png

Needs `pip install 'tritonclient[http]' pillow`. Preprocessing is inside the graph: the manifest
says which, and what has to be done before. Labels are in the manifest, too.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tritonclient import http

if len(sys.argv) != 4:
    sys.exit(__doc__)
folder, address, path = sys.argv[1:]
manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
client = http.InferenceServerClient(address.removeprefix("http://"))
model = client.get_model_repository_index()[0]["name"]  # a server with several needs its name here
(spec,) = client.get_model_metadata(model)["inputs"]
_, channels, height, width = spec["shape"]
image = Image.open(path).convert("L" if channels == 1 else "RGB").resize((width, height))
batch = np.asarray(image).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
tensor = http.InferInput(spec["name"], batch.shape, spec["datatype"])
tensor.set_data_from_numpy(np.ascontiguousarray(batch))  # uint8: the graph does the rest
logits = client.infer(model, [tensor]).as_numpy(
    client.get_model_metadata(model)["outputs"][0]["name"]
)
print(f"before the graph: {manifest['before'] or 'nothing'}; in it: {manifest['preprocessing']}")
print(manifest["labels"][logits[0].argmax()])
