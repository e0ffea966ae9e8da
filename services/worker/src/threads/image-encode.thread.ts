import { Deadline, systemClock } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import { type DeviceSpec, type NetworkFiles, openDevice } from "../device/device.ts";
import type { LatentScaling } from "../stages/image-decode.ts";
import { ImageEncodeStage, type LatentDistribution, type VaeEncoder } from "../stages/image-encode.ts";
import type { RgbImage } from "../stages/image-file.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface ImageEncodeData {
  readonly device: DeviceSpec;
  readonly limits: { readonly waitingMax: number };
}

export interface ImageEncodeWork {
  readonly model: string;
  readonly picture: RgbImage;
  readonly shape: LatentShape;
  readonly scaling: LatentScaling;
  readonly deadlineAtMs: number;
}

await hostStage(openImageEncode);

function openImageEncode(
  { device, limits }: ImageEncodeData,
  reply: Reply<LatentDistribution, never>,
): HostedStage<ImageEncodeWork, never, NetworkFiles> {
  const opener = openDevice(device);
  const encoders = new ModelNetworks((files: NetworkFiles) => opener.openVaeEncoder(files));
  const vae: VaeEncoder = { encode: (work) => encoders.get(work.model).encode(work) };
  const stage = new ImageEncodeStage(vae, limits);

  return {
    // Many bundles make images from words alone.
    openModel: async (files) =>
      files.vaeEncoderPath === undefined ? { weightsBytes: 0, notes: [] } : encoders.open(files),
    closeModel: (model) => encoders.close(model),
    enqueue: (id, { deadlineAtMs, ...work }) =>
      stage.enqueue({ ...work, id, deadline: new Deadline(systemClock, deadlineAtMs) }),
    cancel: (id) => stage.cancel(id),
    command: () => {},
    get busy() {
      return stage.busy;
    },
    async step() {
      const outcome = await stage.step();
      if (outcome === undefined) return;
      if (outcome.error !== undefined) reply.failed(outcome.job.id, outcome.error);
      else reply.done(outcome.job.id, outcome.latents);
    },
    release: () => encoders.closeAll(),
  };
}
