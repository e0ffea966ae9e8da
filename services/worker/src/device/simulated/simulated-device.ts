import { latentSize } from "@atelier/diffusion";
import type { UnetBatch, UnetRow } from "../../stages/denoise.ts";
import type { DecodedPixels, DecodeWork } from "../../stages/image-decode.ts";
import type { EncodedText, TokenIds } from "../../stages/text-encode.ts";
import type { Device, NetworkFiles, SimulatedDeviceSpec } from "../device.ts";
import { weightsBytes } from "../weights-bytes.ts";
import { GPU_NAMES } from "./gpu-figures.ts";
import { GpuTimer } from "./gpu-timer.ts";
import { GpuTimes, simulatedModel } from "./gpu-times.ts";
import { mark } from "./mark.ts";

/** Pixels on each side of a latent place. */
const VAE_SCALE = 8;
/** Numbers that stand for a token. Nothing is multiplied with them. */
const EMBEDDING_WIDTH = 8;

/**
 * A GPU that is not there: each network takes the time that the real one would, by published figures, and computes next
 * to nothing. The stages around it are the real ones. Every picture is marked.
 *
 * Each network has its own time, as if the text encoder, the U-Net and the VAE never waited for one another.
 */
export function openSimulatedDevice({ gpu, speed = 1 }: SimulatedDeviceSpec): Device {
  const timesOf = ({ family }: NetworkFiles) => new GpuTimes(gpu, simulatedModel(family));
  const held = async (path: string) => ({ weightsBytes: await weightsBytes(path), release: async () => {} });
  return {
    async openTextEncoder({ path, hiddenOutput, pooledOutput }) {
      // SDXL reads an inner layer of two encoders, which share the time that is known of both; SD reads the last of one.
      const towers = hiddenOutput === "last_hidden_state" ? 1 : 2;
      const times = new GpuTimes(gpu, towers === 1 ? "sd15" : "sdxl");
      const timer = new GpuTimer({ speed });
      const encode = (rows: readonly TokenIds[]) =>
        timer.run(times.textEncodeMs(rows.length) / towers, () =>
          rows.map((ids) => embedded(ids, pooledOutput !== undefined)),
        );
      return { encode, ...(await held(path)) };
    },

    async openUnet(files) {
      const times = timesOf(files);
      const timer = new GpuTimer({ speed });
      const predictNoise = ({ shape, rows }: UnetBatch) =>
        timer.run(times.stepMs({ area: shape.height * shape.width, rows: rows.length }), () => rows.map(predicted));
      return {
        wide: { threads: 1, predictNoise },
        narrow: [],
        narrowMax: 0,
        openNarrow: async () => {},
        batchDifference: 0,
        ...(await held(files.unetPath)),
      };
    },

    async openVaeDecoder(files) {
      const times = timesOf(files);
      const timer = new GpuTimer({ speed });
      const decode = ({ latents, shape }: DecodeWork) =>
        timer.run(times.decodeMs({ area: shape.height * shape.width, pictures: latents.length }), () =>
          latents.map((latent) => markedPicture(latent, shape, GPU_NAMES[gpu])),
        );
      return { decode, ...(await held(files.vaeDecoderPath)) };
    },

    async openVaeEncoder(files) {
      const times = timesOf(files);
      const timer = new GpuTimer({ speed });
      const encode = ({ pixels, width, height }: { pixels: Float32Array; width: number; height: number }) => {
        const shape = { channels: files.latentChannels, height: height / VAE_SCALE, width: width / VAE_SCALE };
        const area = shape.height * shape.width;
        return timer.run(times.decodeMs({ area, pictures: 1 }), () => ({
          ...shape,
          values: sampled(pixels, shape, width),
        }));
      };
      return { encode, ...(await held(files.vaeEncoderPath ?? files.vaeDecoderPath)) };
    },
  };
}

/** Numbers of -1..1 that follow from the tokens: another prompt is another picture. */
function embedded(ids: TokenIds, pooled: boolean): EncodedText {
  let hash = 0;
  for (const id of ids) hash = (Math.imul(hash, 31) + id) | 0;
  const hidden = new Float32Array(ids.length * EMBEDDING_WIDTH).map((_, i) => Math.sin(hash + i));
  return pooled ? { hidden, pooled: hidden.slice(0, EMBEDDING_WIDTH) } : { hidden };
}

/** A share of the sample, so that samplers converge, and a colour from the text, small enough for any guidance scale. */
function predicted({ sample, conditioning }: UnetRow): Float32Array {
  const size = sample.length / 4;
  return sample.map((x, i) => 0.9 * x + 0.01 * conditioning[Math.floor(i / size) % conditioning.length]!);
}

/** The latent's first three channels as colours, each place a square of pixels, and the mark over it. */
function markedPicture(
  latent: Float32Array,
  shape: { readonly channels: number; readonly height: number; readonly width: number },
  name: string,
): DecodedPixels {
  const width = shape.width * VAE_SCALE;
  const height = shape.height * VAE_SCALE;
  const plane = width * height;
  const places = latentSize(shape) / shape.channels;
  const pixels = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < height; y++) {
      const row = channel * plane + y * width;
      const from = (channel % shape.channels) * places + Math.floor(y / VAE_SCALE) * shape.width;
      for (let x = 0; x < width; x++) pixels[row + x] = Math.tanh(latent[from + Math.floor(x / VAE_SCALE)]! / 4);
    }
  }
  mark(
    {
      width,
      height,
      set(x, y, level) {
        for (let channel = 0; channel < 3; channel++) pixels[channel * plane + y * width + x] = 2 * level - 1;
      },
    },
    name,
  );
  return { pixels, width, height };
}

/** One pixel of each square, its colours over and over. */
function sampled(
  pixels: Float32Array,
  { channels, height, width }: { readonly channels: number; readonly height: number; readonly width: number },
  pictureWidth: number,
): Float32Array {
  const plane = pixels.length / 3;
  const values = new Float32Array(channels * height * width);
  let i = 0;
  for (let channel = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        values[i] = pixels[(channel % 3) * plane + y * VAE_SCALE * pictureWidth + x * VAE_SCALE]!;
      }
    }
  }
  return values;
}
