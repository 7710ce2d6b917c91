// Where a server may send its clients on to: never to another protocol, to the network around them, or from https to http
// with a token.
import { lookup } from "node:dns/promises";
import { BlockList, isIP } from "node:net";
import { UserError } from "../../base/errors.ts";

/** A step from one address to the next. */
export type Redirect = {
  /** The address that the user named. */
  named: string;
  /** The address that answered. */
  from: string;
  /** Its Location header, which may be relative. */
  location: string;
  /** Whether a token was sent on the way here. */
  token: boolean;
};

/**
 * The address that a redirect leads to. A private one (RFC 1918), a loopback or a link-local one may only follow on
 * one of the same kind. A name that cannot be looked up counts as public, since a proxy may know it; between the
 * look-up here and fetch()'s own a name can still change what it stands for. Throws UserError if it should not be
 * followed.
 */
export async function followed({ named, from, location, token }: Redirect): Promise<string> {
  const refused = (advice: string) =>
    new UserError(`Cannot read "${named}": it redirects to "${location}", ${advice}`);
  const to = URL.parse(location, from);
  if (to === null) throw refused("which is no address; check the address");
  if (to.protocol !== "http:" && to.protocol !== "https:") {
    throw refused("should be an address of http or https; check the address");
  }
  if (token && from.startsWith("https:") && to.protocol === "http:") {
    throw refused("should stay with https where a token is sent; check the address, or unset HF_TOKEN");
  }
  const { hostname } = new URL(named);
  if (to.hostname === hostname) return to.href;
  const reach = await reachOf(to.hostname);
  if (reach !== "public" && reach !== await reachOf(hostname)) {
    throw refused(`which is a ${reach} address; if that is what you want, name it yourself`);
  }
  return to.href;
}

/** From where an address can be reached. */
type Reach = "public" | "private" | "loopback" | "link-local";

const NETWORKS: [Reach, string[]][] = [
  ["loopback", ["127.0.0.0/8", "0.0.0.0/8", "::/127"]], // Linux takes 0.0.0.0 and :: for itself
  ["link-local", ["169.254.0.0/16", "fe80::/10"]], // among them the metadata of cloud machines
  ["private", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"]],
  ["private", ["100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15"]], // of carriers, protocols and benchmarks
  ["private", ["224.0.0.0/3", "ff00::/8"]], // multicast and reserved
];

/** The narrowest reach of the addresses that a host of a URL has. */
async function reachOf(hostname: string): Promise<Reach> {
  const host = hostname.replace(/^\[|\]$|\.$/g, "");
  if (host === "localhost" || host.endsWith(".localhost")) return "loopback"; // whatever a resolver says
  const addresses = isIP(host) ? [host] : await lookup(host, { all: true }).then(
    (found) => found.map(({ address }) => address.replace(/%.*/, "")),
    () => [],
  );
  const inside = (networks: BlockList) =>
    addresses.some((address) => networks.check(address, isIP(address) === 6 ? "ipv6" : "ipv4"));
  return NETWORKS.find(([, networks]) => inside(listOf(networks)))?.[0] ?? "public";
}

function listOf(networks: string[]): BlockList {
  const list = new BlockList();
  for (const network of networks) {
    const [address = "", bits] = network.split("/");
    list.addSubnet(address, Number(bits), isIP(address) === 6 ? "ipv6" : "ipv4");
  }
  return list;
}
