"""
Writes data/timesteps/*.onnx, small networks exported with every kind of timestep that a U-Net's export may have, and
data/timesteps.{json,f32}: what torch makes of two rows that stand at different timesteps.

The networks begin as every U-Net of diffusers does, with its own code: the timestep expanded to the batch, sinusoids,
two linear layers, added to a convolution of the latents. Both of torch's exporters write them.

Run: python test/golden/write_timesteps.py
"""

import warnings

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from golden_file import DATA, GoldenFile

CHANNELS, WIDTH = 4, 8
# One kind of timestep each: as optimum exports it today, as it did, and what others have.
TIMESTEPS = {
    "int64-scalar": torch.tensor(5),
    "int64-one": torch.tensor([5]),
    "int32-scalar": torch.tensor(5, dtype=torch.int32),
    "float32-scalar": torch.tensor(5.0),
    "float32-one": torch.tensor([5.0]),
}
SAMPLERS_TIMESTEPS = [979.97, 20.5]


class UnetHead(torch.nn.Module):
    get_time_embed = UNet2DConditionModel.get_time_embed

    def __init__(self) -> None:
        super().__init__()
        self.time_proj = Timesteps(WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(WIDTH, 2 * WIDTH)
        self.project = torch.nn.Linear(2 * WIDTH, CHANNELS)
        self.conv_in = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, sample, timestep):
        emb = self.time_embedding(self.get_time_embed(sample, timestep))
        return self.conv_in(sample) + self.project(emb)[:, :, None, None]


def export(head: UnetHead, sample: torch.Tensor, timestep: torch.Tensor, name: str) -> None:
    common = {"input_names": ["sample", "timestep"], "output_names": ["out_sample"]}
    axes = {"sample": {0: "batch_size"}, "out_sample": {0: "batch_size"}}
    torch.onnx.export(head, (sample, timestep), str(DATA / f"timesteps/{name}.traced.onnx"), dynamic_axes=axes,
                      opset_version=11 if name == "int64-scalar" else 17, dynamo=False, **common)
    shapes = {"sample": {0: torch.export.Dim("batch_size")}, "timestep": None}
    program = torch.onnx.export(head, (sample, timestep), dynamic_shapes=shapes, opset_version=18, dynamo=True,
                                verbose=False, **common)
    for value in program.model.graph:  # where in torch's sources each node comes from, folder names and all
        value.metadata_props.clear()
    program.save(str(DATA / f"timesteps/{name}.captured.onnx"), external_data=False)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    (DATA / "timesteps").mkdir(exist_ok=True)
    head = UnetHead().eval()
    sample = torch.randn(2, CHANNELS, 3, 5)
    golden = GoldenFile("timesteps")
    with torch.no_grad():
        for name, timestep in TIMESTEPS.items():
            export(head, sample, timestep, name)
        for timesteps in (SAMPLERS_TIMESTEPS, [980.0, 20.0]):
            arrays = {"sample": sample, "output": head(sample, torch.tensor(timesteps))}
            golden.add(arrays, dims=list(sample.shape), timesteps=timesteps)
    golden.write("test/golden/write_timesteps.py", graphs=[f"{n}.{e}" for n in TIMESTEPS for e in ("traced", "captured")])


if __name__ == "__main__":
    main()
