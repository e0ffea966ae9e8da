import type { Served } from "../generations/ports.ts";
import type { TenantSettings } from "./records.ts";

/** What a device hour costs, and in what. */
export interface Tariff {
  readonly pricePerDeviceHour: number;
  /** A label, such as "EUR": nothing is converted. */
  readonly currency: string;
}

const HOUR_MS = 3_600_000;

/** The price that a tenant pays: its own, or the gateway's. */
export function priceFor({ price_per_device_hour: own }: TenantSettings, { pricePerDeviceHour }: Tariff): number {
  return own ?? pricePerDeviceHour;
}

/** In millionths of the currency's unit, rounded: whole numbers add up the same in every order. */
export function costMicros(deviceMs: number, pricePerDeviceHour: number): number {
  return Math.round((deviceMs / HOUR_MS) * pricePerDeviceHour * 1e6);
}

/** Pictures that were made for this request, rather than before or for another. */
export function wasMade({ outcome }: Pick<Served, "outcome">): boolean {
  return outcome !== "hit" && outcome !== "shared";
}
