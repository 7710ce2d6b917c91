// Answers other than what was asked for.
import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
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

/** The answer to a request that failed. */
export function refuse(c: Context, { status, message, headers }: Refusal): Response {
  return c.json({ error: { message } } satisfies Failure, status, headers);
}

/** The answer to a request that met an error, which goes to the terminal unless it is a Refusal. */
export function explainFailure(error: Error, c: Context): Response {
  if (error instanceof Refusal) return refuse(c, error);
  console.error(error);
  return refuse(c, new Refusal(500, "The server made a mistake: its terminal says more"));
}
