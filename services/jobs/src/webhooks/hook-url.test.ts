import { describe, expect, it } from "vitest";
import { checkHookUrl, whyPrivateAddress } from "./hook-url.ts";

describe("the URL of a webhook", () => {
  it.each([
    "https://shop.example/hooks?a=1",
    "http://shop.example:8443/",
    "https://93.184.215.14/",
    "https://[2606:4700::1111]/",
  ])("may be %s", (text) => {
    expect(checkHookUrl(text, { privateAllowed: false }).href).toBe(text);
  });

  it.each([
    { text: "shop.example/hooks", says: "is not an http or https URL" },
    { text: "ftp://shop.example/", says: "is not an http or https URL" },
    { text: "file:///etc/passwd", says: "is not an http or https URL" },
    { text: "https://user:word@shop.example/", says: "it holds a user and a password" },
    { text: `https://shop.example/${"a".repeat(2_048)}`, says: "2069 characters; at most 2048" },
    { text: "http://localhost:9000/", says: "localhost is this machine" },
    { text: "http://api.localhost./", says: "is this machine" },
    { text: "http://127.0.0.1/", says: "127.0.0.1 is not public (loopback)" },
    { text: "http://2130706433/", says: "127.0.0.1 is not public (loopback)" },
    { text: "http://0x7f.1/", says: "127.0.0.1 is not public (loopback)" },
    { text: "http://0177.0.0.1/", says: "127.0.0.1 is not public (loopback)" },
    { text: "http://①②⑦.⓪.⓪.①/", says: "127.0.0.1 is not public (loopback)" },
    { text: "http://[::ffff:10.0.0.1]/", says: "is not public (private)" },
    { text: "http://[::127.0.0.1]/", says: "is not public (outside of 2000::/3)" },
    { text: "http://[::1]:80/", says: "is not public (loopback)" },
    { text: "http://0.0.0.0/", says: "is not public (unspecified)" },
    { text: "http://192.168.1.7/", says: "is not public (private)" },
    { text: "http://169.254.169.254/latest/meta-data", says: "is not public (linkLocal)" },
    { text: "http://168.63.129.16/", says: "is a cloud's metadata service" },
  ])("is refused with its reason: $text", ({ text, says }) => {
    expect(() => checkHookUrl(text, { privateAllowed: false })).toThrow(says);
  });

  it("may be one of this network's where that is allowed", () => {
    expect(checkHookUrl("http://127.0.0.1:9000/", { privateAllowed: true }).port).toBe("9000");
  });
});

describe("addresses that names resolve to", () => {
  it.each(["8.8.8.8", "93.184.215.14", "2606:4700::1111"])("%s is public", (address) => {
    expect(whyPrivateAddress(address)).toBeUndefined();
  });

  it.each([
    ...[
      "10.1.2.3",
      "172.16.0.1",
      "127.9.9.9",
      "100.64.0.1",
      "169.254.1.1",
      "224.0.0.1",
      "240.0.0.1",
      "255.255.255.255",
    ],
    ...["0.1.2.3", "192.0.2.1", "198.18.0.1", "::", "::1", "::7f00:1", "::ffff:192.168.0.1", "64:ff9b::a00:1"],
    ...["2002:7f00:1::", "2001::1", "fe80::1", "fec0::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "no address"],
  ])("%s is not", (address) => {
    expect(whyPrivateAddress(address)).toBeDefined();
  });
});
