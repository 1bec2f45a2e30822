"""Foreign inference engines behind the same call as ours, so that they can stand in the same table.

Each is given a network, which it exports, or the path of an exported file.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from models.configuration import PRECISIONS
from models.errors import ModelError, install


def openvino(source: nn.Module | Path, precision: str, example: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Convert to OpenVINO and compile for the CPU and these images, with its defaults for one request at a time.

    Raises:
        ModelError: openvino is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise ModelError(f"the configuration asks for openvino, which is not installed; {install('peers')}") from error
    core = ov.Core()
    if isinstance(source, Path):
        converted = core.read_model(str(source))
        if converted.is_dynamic():
            converted.reshape(list(example))
    else:
        # From an exported program: the converter's own way, TorchScript tracing, is deprecated in torch.
        converted = ov.convert_model(torch.export.export(source, (torch.zeros(example),)))
    # THROUGHPUT opens several streams to overlap requests; one call at a time wants all cores on that call.
    compiled = core.compile_model(
        converted,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    request = compiled.create_infer_request()

    def forward(images: Tensor) -> Tensor:
        # share_inputs and share_outputs: no copies, as our own step has none.
        result = request.infer([images.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])

    return forward


def onnxruntime(source: nn.Module | Path, precision: str, example: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Export to ONNX in memory, unless it is a file, and run it with ONNX Runtime, CUDA first where it offers it.

    Raises:
        ModelError: onnxruntime, onnx or onnxscript is not installed.
    """
    try:
        import onnxruntime as ort

        if not isinstance(source, Path):
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"the configuration asks for onnxruntime, which needs onnxruntime, onnx and onnxscript; {install('peers')}"
        ) from error
    content: str | bytes
    if isinstance(source, Path):
        # By its path: a large file keeps its weights in another one beside it.
        content = str(source)
    else:
        program = torch.onnx.export(source, (torch.zeros(example),), dynamo=True, verbose=False)
        assert program is not None
        content = program.model_proto.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    available = ort.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    session = ort.InferenceSession(content, options, providers=providers)
    name = session.get_inputs()[0].name

    answer = session.get_outputs()[0].name
    offered = "CUDAExecutionProvider" in session.get_providers()

    def forward(images: Tensor) -> Tensor:
        if not images.is_cuda:
            return torch.from_numpy(session.run(None, {name: images.numpy()})[0])
        if not offered:
            raise ModelError(
                "the onnxruntime installed here runs on CPUs only; pip install onnxruntime-gpu, or --device cpu"
            )
        # The images stay on the device, and so do the logits. Has never run on a GPU here.
        images = images.contiguous()
        device, number = images.device.type, images.device.index or 0
        # It works on a stream of its own, which does not wait for torch's.
        torch.cuda.current_stream().synchronize()
        binding = session.io_binding()
        binding.bind_input(name, device, number, "float32", tuple(images.shape), images.data_ptr())
        binding.bind_output(answer, device, number)
        session.run_with_iobinding(binding)
        logits: Tensor = from_dlpack(binding.get_outputs()[0].to_dlpack())
        return logits

    return forward


def tensorrt(source: nn.Module | Path, precision: str, example: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Compile with torch-tensorrt. Has never run on a GPU here.

    Raises:
        ModelError: torch-tensorrt is not installed.
    """
    try:
        import torch_tensorrt
    except ImportError as error:
        raise ModelError(
            "the configuration asks for tensorrt, which needs torch-tensorrt; it is not installed"
        ) from error
    assert isinstance(source, nn.Module), "no exported file names TensorRT among its engines"
    dtype = getattr(torch, PRECISIONS[precision].weights(training=False))
    images = torch.zeros(example, dtype=dtype, device="cuda")
    compiled: Callable[[Tensor], Tensor] = torch_tensorrt.compile(
        source.to("cuda", dtype), inputs=[images], enabled_precisions={dtype}
    )
    return compiled


ENGINES: dict[str, Callable[[nn.Module | Path, str, tuple[int, ...]], Callable[[Tensor], Tensor]]] = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
}
