"""The options of a loader: one frozen description that every engine understands."""

from dataclasses import dataclass

from kernels.formats import DTYPES, IMAGENET_MEAN, IMAGENET_STD
from loaders import policies
from loaders.errors import DataError

LAYOUTS = ("nhwc", "nchw")
DECODERS = ("cpu", "mixed", "mixed-whole")
RESIZES = ("torch", "dali")
NORMALIZATIONS = ("fixed", "per_image")
EXIF = ("ignore", "apply")

EVAL_MARGIN = 256 / 224  # shorter side over crop in the usual ImageNet evaluation

_KNOWN = {
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "decoder": DECODERS,
    "resize": RESIZES,
    "normalization": NORMALIZATIONS,
    "exif": EXIF,
}
_LEAST = {
    "batch": 1,
    "size": 1,
    "threads": 0,
    "shards": 1,
    "prefetch": 1,
    "seed": 0,
    "stored_size": 0,
    "eval_margin": 1,
}


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """What to load and how.

    Every engine honours the first block. The second block tunes single engines; the others ignore it.

    Attributes:
        batch: images a batch.
        size: height and width of an output image, pixels.
        dtype: element type of the images: float32, bfloat16 or float16.
        layout: memory order: nhwc (channels_last strides) or nchw. The shape is [batch, 3, size, size] either way.
        device: where the tensors are delivered: cpu, cuda or cuda:N.
        threads: decoding threads (DALI, SPDL) or worker processes (DataLoader); with 0 the caller's process works.
        seed: fixes the order of the images and, unless the engine's description says otherwise, every crop and flip.
        train: True shuffles and augments; only full batches. False resizes the shorter side to size * eval_margin,
            crops the centre, keeps the order and gives every image exactly once, the last batch possibly smaller.
        shard, shards: this loader's part of the data set and the number of parts.
        prefetch: batches made ahead.
        mean, std: per channel, in units of 0..1: output = (pixel / 255 - mean) / std.
        augment: policy of the training images, see loaders.policies.
        eval_margin: shorter side over crop in evaluation; 1 shows the whole image, as resident does up to 64 pixels.
        random_eval: send an evaluation's images through the training augmentation, as some published figures were
            measured. Order and count stay those of an evaluation; the changes differ from epoch to epoch.
        normalization: "fixed" by mean and std, or "per_image": each channel of each image to mean 0, deviation 1.
        exif: "ignore" the orientation that files store, as torchvision's ImageFolder does, or "apply" it.

        decoder: dali: "cpu", or "mixed" for nvJPEG and the JPEG engine of the GPU, which decode only the window where
            they can; "mixed-whole", for GPUs on which that fails, decodes whole images and cuts the windows out.
            nvjpeg: with any but "cpu" the device decodes.
        resize: dali on the CPU: "torch" (uint8, antialiased, vectorised) or "dali" (its own operator).
        hw_decoder_load: dali mixed: share of the images given to the GPU's JPEG engine, 0..1.
        preallocate_width, preallocate_height: dali mixed: largest image expected, pixels; 0 allocates on demand.
        stored_size: resident: pixels of the shorter side that images are kept with at most; 0 means size * eval_margin.
            Up to 64 pixels images are squares of this size, 0 means size, and they are augmented before a resize.
    """

    batch: int = 32
    size: int = 224
    dtype: str = "float32"
    layout: str = "nhwc"
    device: str = "cpu"
    threads: int = 2
    seed: int = 0
    train: bool = True
    shard: int = 0
    shards: int = 1
    prefetch: int = 2
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augment: str = "standard"
    eval_margin: float = EVAL_MARGIN
    random_eval: bool = False
    normalization: str = "fixed"
    exif: str = "ignore"

    decoder: str = "cpu"
    resize: str = "torch"
    hw_decoder_load: float = 0.65
    preallocate_width: int = 0
    preallocate_height: int = 0
    stored_size: int = 0

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value not in known:
                raise DataError(f"loader option {name} is {value!r}; known: {', '.join(known)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise DataError(f"loader option {name} is {value}; it must be {least} or more")
        if not 0 <= self.shard < self.shards:
            raise DataError(
                f"loader option shard is {self.shard}; with {self.shards} shards it is 0..{self.shards - 1}"
            )
        if not 0 <= self.hw_decoder_load <= 1:
            raise DataError(f"loader option hw_decoder_load is {self.hw_decoder_load}; it is a share, 0..1")
        if self.random_eval and self.train:
            raise DataError("loader option random_eval is for an evaluation; set train to False")
        policies.parse(self.augment)
        policies.check_border(self.operations(), self.stored_size or self.size)
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise DataError(f"loader option device is {self.device!r}; known: cpu, cuda, cuda:N")

    @property
    def augmented(self) -> bool:
        """Whether images are changed at random: in training, and in an evaluation with random_eval."""
        return self.train or self.random_eval

    def operations(self, standard: str = policies.STANDARD_FILES) -> tuple[policies.Operation, ...]:
        """The random changes of an image, in order; none in a plain evaluation.

        Args:
            standard: what the policy "standard" stands for.
        """
        return policies.parse(self.augment, standard) if self.augmented else ()

    @property
    def margin(self) -> float:
        """Shorter side over crop where no resized_crop is cut: 1 if a border is added, so that no pixel is lost."""
        bordered = any(operation.name in policies.BORDERED for operation in self.operations())
        return 1.0 if bordered else self.eval_margin
