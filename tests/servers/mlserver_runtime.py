"""A runtime of MLServer that serves an ONNX graph."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor

_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(float16)": "FP16"}


def described(values: list) -> list[MetadataTensor]:
    """Returns the metadata of a session's inputs or outputs."""
    return [
        MetadataTensor(
            name=value.name,
            datatype=_TYPES[value.type],
            shape=[axis if isinstance(axis, int) else -1 for axis in value.shape],
        )
        for value in values
    ]


class Onnx(MLModel):
    """An ONNX graph."""

    async def load(self) -> bool:
        """Opens the graph."""
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, providers=["CPUExecutionProvider"]
        )
        self.inputs = described(self.session.get_inputs())
        self.outputs = described(self.session.get_outputs())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Runs one request."""
        feeds = {entry.name: NumpyCodec.decode_input(entry) for entry in payload.inputs}
        names = [value.name for value in self.session.get_outputs()]
        arrays = self.session.run(names, feeds)
        outputs = [
            NumpyCodec.encode_output(name, array) for name, array in zip(names, arrays, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
