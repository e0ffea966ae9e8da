import { InvalidArgumentError } from "commander";

/** Values on the command line. Each parser refuses what cannot be one; what a model allows is the server's to say. */

export function wholeNumber({ min, max }: { min: number; max: number }) {
  return (text: string): number => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
  };
}

export function decimal(text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isFinite(value)) return value;
  throw new InvalidArgumentError("It must be a number.");
}

/** "512x384", or "512" for a square, in pixels. */
export function size(text: string): { width: number; height: number } {
  const match = /^(\d{1,9})(?:[x×*](\d{1,9}))?$/i.exec(text);
  if (match === null) throw new InvalidArgumentError("It must be WIDTHxHEIGHT in pixels, such as 512x512.");
  return { width: Number(match[1]), height: Number(match[2] ?? match[1]) };
}

export function httpUrl(text: string): string {
  const url = URL.parse(text);
  if (url !== null && ["http:", "https:"].includes(url.protocol)) return text;
  throw new InvalidArgumentError("It must be an address such as http://127.0.0.1:8080.");
}

/** One address of a NATS, or several with commas. */
export function natsUrl(text: string): string {
  if (text.split(",").every((one) => /^(?:nats|tls):\/\/[^\s/]+$/.test(one))) return text;
  throw new InvalidArgumentError("It must be an address such as nats://127.0.0.1:4222.");
}
