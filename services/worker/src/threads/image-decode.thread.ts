import { Deadline, preciseClock, systemClock } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import { type DeviceSpec, type NetworkFiles, narrowDecoderShare, openDevice } from "../device/device.ts";
import {
  type DecodedImage,
  type DecodeLimits,
  ImageDecodeStage,
  type LatentScaling,
  type VaeDecoder,
} from "../stages/image-decode.ts";
import { encodeImage, type ImageEncoding } from "../stages/image-file.ts";
import type { PriorityClass } from "../stages/order/service-order.ts";
import { ModelNetworks } from "./model-networks.ts";
import { type HostedStage, hostStage, type Reply } from "./stage-host.ts";

export interface ImageDecodeData {
  readonly device: DeviceSpec;
  readonly limits: DecodeLimits;
}

export interface ImageDecodeWork {
  readonly model: string;
  readonly latent: Float32Array;
  readonly shape: LatentShape;
  readonly scaling: LatentScaling;
  readonly tile: number;
  /** Nothing else wants the device. */
  readonly wide: boolean;
  readonly encoding: ImageEncoding;
  readonly priorityClass: PriorityClass;
  readonly deadlineAtMs: number;
}

await hostStage(openImageDecode);

function openImageDecode(
  { device, limits }: ImageDecodeData,
  reply: Reply<DecodedImage, never>,
): HostedStage<ImageDecodeWork, never, NetworkFiles> {
  const opener = openDevice(device);
  const decoders = new ModelNetworks((files: NetworkFiles) => opener.openVaeDecoder(files));
  const vae: VaeDecoder = { decode: (work) => decoders.get(work.model).decode(work) };
  const stage = new ImageDecodeStage(
    {
      vae,
      clock: preciseClock,
      narrowShare: narrowDecoderShare(device),
      encode: encodeImage,
      onOutcome: (outcome) => {
        const { id } = outcome.job;
        if (outcome.error !== undefined) reply.failed(id, outcome.error);
        else reply.done(id, outcome.decoded, [outcome.decoded.image.data.buffer]);
      },
    },
    limits,
  );

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
    step: () => stage.step(),
    async release() {
      await stage.settled();
      await decoders.closeAll();
    },
  };
}
