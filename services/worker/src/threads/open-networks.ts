import { type Device, type DeviceSpec, type NetworkFiles, openDevice, type Releasable } from "../device/device.ts";
import { OpenFailures } from "./stage-host.ts";

/**
 * Opens one network of every model.
 *
 * @throws OpenFailures naming every one that could not be opened; those that could are released.
 */
export async function openNetworks<Files extends NetworkFiles, Network extends Releasable>(
  device: DeviceSpec,
  models: readonly Files[],
  open: (device: Device, files: Files) => Promise<Network>,
): Promise<ReadonlyMap<string, Network>> {
  const opener = openDevice(device);
  const networks = new Map<string, Network>();
  const failures: unknown[] = [];
  for (const files of models) {
    try {
      networks.set(files.model, await open(opener, files));
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length === 0) return networks;
  await releaseAll(networks);
  throw new OpenFailures(failures);
}

export async function releaseAll(networks: ReadonlyMap<string, Releasable>): Promise<void> {
  for (const network of networks.values()) await network.release();
}
