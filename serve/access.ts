// Who may ask what. Without a token only programs and pages of this machine get answers; with one, whoever has it.
import type { Context, MiddlewareHandler } from "hono";
import { getCookie, setCookie } from "hono/cookie";
import { hash, timingSafeEqual } from "node:crypto";
import { UserError } from "../base/errors.ts";
import { ASSETS } from "./assets.ts";
import { Refusal } from "./refusal.ts";

/** The path that is answered however many others are asked for. */
export const HEALTH = "/healthz";

const LEAST_TOKEN = 16; // characters
const MOST_URL = 4096; // characters
const MOST_IN_FLIGHT = 256; // requests, from the first byte to the last of the answer; for /events to the first

const NEEDS_TOKEN = "A token is needed: send it as Authorization: Bearer TOKEN, or as ?token=TOKEN";

/** What every answer says to browsers: nothing from elsewhere, no frames, no guessing of types, nothing kept. */
const HEADERS: Record<string, string> = {
  "Cache-Control": "no-store",
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
};

/** The answer to isPreflight(). */
const PREFLIGHT = {
  "Access-Control-Allow-Methods": "GET, HEAD, POST",
  "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
  "Access-Control-Max-Age": "600", // seconds
};

/** Whether an address is reached from this machine only. */
export function isLoopback(hostname: string): boolean {
  const name = hostname.replace(/^\[|\]$/g, "").toLowerCase();
  return name === "localhost" || name.endsWith(".localhost") || name === "::1" ||
    /^127(\.\d{1,3}){3}$/.test(name);
}

/**
 * The token that requests need, or undefined where none is set. Throws UserError if the address can be reached from
 * elsewhere and there is no token, or it is easy to guess or cannot be sent in a header.
 */
export function requireToken(hostname: string, token: string | undefined): string | undefined {
  const advice = "set one with: export LOAM_TOKEN=$(openssl rand -hex 16)";
  if (token && token.length < LEAST_TOKEN) {
    throw new UserError(
      `Cannot use LOAM_TOKEN: it has ${token.length} characters and must have ${LEAST_TOKEN} at least; ${advice}`,
    );
  }
  if (token && !/^[\x21-\x7e]+$/.test(token)) {
    throw new UserError(
      `Cannot use LOAM_TOKEN: it holds a space or a character beyond ASCII, which headers do not carry; ${advice}`,
    );
  }
  if (token || isLoopback(hostname)) return token || undefined;
  throw new UserError(
    `Cannot serve on ${hostname} without a token: who reaches this machine could read the runs; ${advice}, or leave ` +
      "--host out to serve this machine only",
  );
}

/**
 * The checks that every request passes before its route, and the headers of every answer. The files of the dashboard need no
 * token: they are the same for everyone, and ask for it. origins: pages from there may use the server, too.
 *
 * @internal since `deno doc --lint` takes MiddlewareHandler, a type of the package hono, for a private one
 */
export function access(token: string | undefined, origins: readonly string[] = []): MiddlewareHandler {
  let inFlight = 0;
  return async (c, next): Promise<Response | void> => {
    for (const [name, value] of Object.entries(HEADERS)) c.header(name, value);
    if (inFlight >= MOST_IN_FLIGHT && c.req.path !== HEALTH) {
      throw new Refusal(503, `${MOST_IN_FLIGHT} requests are being answered already`, {
        headers: { "Retry-After": "1" },
      });
    }
    inFlight++;
    try {
      requireShort(c);
      requireOrigin(c, origins);
      if (isPreflight(c, origins)) return c.body(null, 204, PREFLIGHT);
      if (token === undefined) requireLocalHost(c);
      else if (knowsToken(c, token)) rememberToken(c, token);
      else if (!(c.req.path in ASSETS)) {
        throw new Refusal(401, NEEDS_TOKEN, {
          headers: { "WWW-Authenticate": "Bearer" },
          code: "invalid_api_key",
        });
      }
      if (c.req.path === "/" && c.req.query("token") !== undefined) return c.redirect(withoutToken(c), 303);
      await next();
    } finally {
      delivered(c).then(() => inFlight--);
    }
  };
}

/** Resolves when the client has its answer or is gone: until then the answer takes memory. /events has its own limits. */
async function delivered(c: Context): Promise<void> {
  const { completed } = (c.env ?? {}) as { completed?: Promise<void> }; // none where a test asks the app itself
  if (c.req.path !== "/events") await completed;
}

function requireShort(c: Context): void {
  if (c.req.url.length > MOST_URL) {
    throw new Refusal(414, `The address is longer than ${MOST_URL} characters`);
  }
}

/** A page from elsewhere could not read an answer, but could have the model work. */
function requireOrigin(c: Context, origins: readonly string[]): void {
  if (origins.length > 0) c.header("Vary", "Origin");
  const origin = c.req.header("Origin");
  if (origin === undefined || URL.parse(origin)?.host === new URL(c.req.url).host) return;
  if (!origins.includes(origin)) {
    throw new Refusal(403, `Pages of ${origin} may not use this server: deno task serve --cors lets them`);
  }
  c.header("Access-Control-Allow-Origin", origin);
  c.header("Access-Control-Expose-Headers", "Retry-After");
}

/** Whether a browser asks if a page of one of the origins may send what it is about to send. It names no token yet. */
function isPreflight(c: Context, origins: readonly string[]): boolean {
  return c.req.method === "OPTIONS" && c.req.header("Access-Control-Request-Method") !== undefined &&
    origins.includes(c.req.header("Origin") ?? "");
}

/** A name that someone else points at this machine would make their page one of ours (DNS rebinding). */
function requireLocalHost(c: Context): void {
  const { hostname } = new URL(c.req.url);
  if (isLoopback(hostname)) return;
  throw new Refusal(
    403,
    `This server is not ${hostname}: ask for localhost instead, or start it with LOAM_TOKEN`,
  );
}

function knowsToken(c: Context, token: string): boolean {
  const bearer = /^Bearer +(.+)$/i.exec(c.req.header("Authorization") ?? "")?.[1];
  return isEqual(bearer ?? c.req.query("token") ?? "", token) ||
    isEqual(getCookie(c, cookieName(token)) ?? "", cookieValue(token));
}

/** A browser that came with the token in the address sends a cookie from then on. */
function rememberToken(c: Context, token: string): void {
  if (c.req.query("token") === undefined) return;
  setCookie(c, cookieName(token), cookieValue(token), { path: "/", httpOnly: true, sameSite: "Lax" });
}

/** The address of the page that shows the token no longer. */
function withoutToken(c: Context): string {
  const { searchParams } = new URL(c.req.url);
  searchParams.delete("token");
  return searchParams.size > 0 ? `/?${searchParams}` : "/";
}

/** Compares in a time that tells nothing about where the texts differ. */
function isEqual(a: string, b: string): boolean {
  return timingSafeEqual(sha256(a), sha256(b));
}

function sha256(text: string): Uint8Array {
  return hash("sha256", text, "buffer");
}

/** The cookie is not the token itself, and its name differs between servers on ports of the same machine. */
function cookieValue(token: string): string {
  return sha256(`loam cookie ${token}`).toHex();
}

function cookieName(token: string): string {
  return `loam_${sha256(`loam cookie name ${token}`).toHex().slice(0, 8)}`;
}
