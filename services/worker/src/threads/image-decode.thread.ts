import { Deadline, systemClock } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import { type DeviceSpec, type NetworkFiles, openDevice } from "../device/device.ts";
import { ImageDecodeStage, type LatentScaling, type VaeDecoder } from "../stages/image-decode.ts";
import { type EncodedImage, encodeImage, type ImageEncoding } from "../stages/image-file.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface ImageDecodeData {
  readonly device: DeviceSpec;
  readonly limits: { readonly waitingMax: number };
}

export interface ImageDecodeWork {
  readonly model: string;
  readonly latent: Float32Array;
  readonly shape: LatentShape;
  readonly scaling: LatentScaling;
  readonly encoding: ImageEncoding;
  readonly deadlineAtMs: number;
}

await hostStage(openImageDecode);

function openImageDecode(
  { device, limits }: ImageDecodeData,
  reply: Reply<EncodedImage, never>,
): HostedStage<ImageDecodeWork, never, NetworkFiles> {
  const opener = openDevice(device);
  const decoders = new ModelNetworks((files: NetworkFiles) => opener.openVaeDecoder(files));
  const vae: VaeDecoder = { decode: (work) => decoders.get(work.model).decode(work) };
  const stage = new ImageDecodeStage(vae, encodeImage, limits);

  return {
    openModel: (files) => decoders.open(files),
    closeModel: (model) => decoders.close(model),
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
      else reply.done(outcome.job.id, outcome.image, [outcome.image.data.buffer]);
    },
    release: () => decoders.closeAll(),
  };
}
