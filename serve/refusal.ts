// Answers other than what was asked for.
import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { UserError } from "../ffi/errors.ts";
import { visible } from "../ffi/visible.ts";
import { withoutHome } from "./stats.ts";
import { isOutOfFiles } from "./tail.ts";
import type { Failure } from "./types.ts";

/** Thrown by a handler whose request cannot be served. The message is one sentence for the person who sent it. */
export class Refusal extends Error {
  constructor(
    readonly status: ContentfulStatusCode,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

/** The answer to a request that failed, before it reached the app. */
export function responseOf({ status, message, headers }: Refusal): Response {
  return Response.json({ error: { message } } satisfies Failure, { status, headers });
}

/** The answer to a request that failed. */
function refuse(c: Context, { status, message, headers }: Refusal): Response {
  return c.json({ error: { message } } satisfies Failure, status, headers);
}

/** The answer to a request that met an error. */
export function explainFailure(error: Error, c: Context): Response {
  return refuse(c, asRefusal(error));
}

/** What the sender of a request is told of an error. One that is not meant for them goes to the terminal. */
export function asRefusal(error: unknown): Refusal {
  if (error instanceof Refusal) return error;
  if (isOutOfFiles(error)) {
    return new Refusal(503, "The server can open no more files now", { "Retry-After": "1" });
  }
  if (error instanceof UserError) return new Refusal(500, withoutHome(error.message));
  report(error);
  return new Refusal(500, "The server made a mistake: its terminal says more");
}

/** Prints an error, or a line, to the terminal. A terminal that takes nothing, such as a full disk, ends no server. */
export function report(error: unknown): void {
  try {
    console.error(visible(typeof error === "string" ? error : Deno.inspect(error)));
  } catch {
    // nobody can be told
  }
}
