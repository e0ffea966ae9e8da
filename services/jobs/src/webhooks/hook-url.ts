import { ServingError } from "@atelier/core";
import ipaddr from "ipaddr.js";

/** What a job may be told of; an empty filter is all of it. */
export const WEBHOOK_EVENTS = [
  "job.started",
  "job.progress",
  "job.paused",
  "job.resumed",
  "job.done",
  "job.cancelled",
  "job.item.failed",
] as const;
export type WebhookEvent = (typeof WEBHOOK_EVENTS)[number];

const URL_CHARS_MAX = 2_048;

/**
 * The URL that `text` means, for calls to a receiver that a caller named.
 *
 * @throws ServingError INVALID_REQUEST of `webhook.url` where it is none, or plainly one of this network's (an address in
 * whatever notation, or localhost) and `privateAllowed` does not say that such may be called. What a name resolves to is
 * looked at when it is called: it may be another address by then.
 */
export function checkHookUrl(text: string, { privateAllowed }: { readonly privateAllowed: boolean }): URL {
  const url = URL.parse(text);
  if (url === null || !["http:", "https:"].includes(url.protocol)) {
    throw refused(`${JSON.stringify(text.slice(0, 200))} is not an http or https URL`);
  }
  if (text.length > URL_CHARS_MAX) throw refused(`it has ${text.length} characters; at most ${URL_CHARS_MAX}`);
  if (url.username !== "" || url.password !== "") {
    throw refused("it holds a user and a password; calls are signed instead, and what they carry is no secret");
  }
  if (!privateAllowed) {
    const why = whyPrivateHost(url.hostname);
    if (why !== undefined) throw refused(`${url.hostname} ${why}; only public addresses are called`);
  }
  return url;
}

/** Why the host of a URL is plainly not for the public; undefined where it may be. */
export function whyPrivateHost(hostname: string): string | undefined {
  // The URL parser has turned 0x7f.1, 2130706433 and their like into four numbers.
  const host = hostname.replace(/^\[|\]$/g, "").replace(/\.$/, "");
  if (/(?:^|\.)localhost$/i.test(host)) return "is this machine";
  return ipaddr.isValid(host) ? whyPrivateAddress(host) : undefined;
}

/** Where clouds answer with their machines' credentials, among public addresses. */
const METADATA = "168.63.129.16";

/** Why an address is not for the public; undefined where it is. An IPv6 form of an IPv4 address is that one. */
export function whyPrivateAddress(address: string): string | undefined {
  if (!ipaddr.isValid(address)) return "is no address";
  const parsed = ipaddr.process(address);
  if (parsed.toString() === METADATA) return "is a cloud's metadata service";
  const range = parsed.range();
  if (range !== "unicast") return `is not public (${range})`;
  // Of IPv6 only 2000::/3 is given out. What else has no name yet includes ::a.b.c.d, an old form of IPv4 addresses.
  if (parsed instanceof ipaddr.IPv6 && parsed.parts[0]! >> 13 !== 1) return "is not public (outside of 2000::/3)";
  return undefined;
}

const refused = (message: string) =>
  new ServingError("INVALID_REQUEST", `webhook.url: ${message}`, { field: "webhook.url" });
