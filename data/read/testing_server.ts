// For the tests of URLs: a web server that answers what a test says, byte for byte.

/** What a client asks for. */
export type Request = {
  /** Path and query of the address. */
  path: string;
  /** As the client sent them. */
  headers: Headers;
};

/** What the server answers. */
export type Answer = {
  /** HTTP status. */
  status?: number;
  /** Beside content-length and connection, which they may replace; "" leaves one out. */
  headers?: Record<string, string>;
  /** Nothing if it is left out. */
  body?: Uint8Array;
  /** Send so many bytes of the body and break off. */
  cut?: number;
  /** Send nothing for 300 ms. */
  silent?: boolean;
};

/** A server that runs. */
export type Server = {
  /** Its address, without a path. */
  url: string;
  /** Those that came, in order. */
  requests: Request[];
  /** Bytes of bodies that were sent. */
  sent: number;
};

/** Runs with a server on a port of its own. */
export async function withServer(
  answer: (request: Request, number: number) => Answer,
  run: (server: Server) => Promise<void>,
): Promise<void> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const server: Server = { url: `http://127.0.0.1:${listener.addr.port}`, requests: [], sent: 0 };
  const answers: Promise<void>[] = [];
  const accepting = (async () => {
    for await (const connection of listener) {
      answers.push(serve(connection, server, answer).catch(() => {})); // clients hang up
    }
  })();
  await run(server);
  listener.close();
  await accepting;
  await Promise.all(answers);
}

async function serve(
  connection: Deno.Conn,
  server: Server,
  answer: (request: Request, number: number) => Answer,
): Promise<void> {
  using _ = connection;
  const head = new Uint8Array(4096), length = await connection.read(head);
  const [first, ...lines] = new TextDecoder().decode(head.subarray(0, length ?? 0)).trim().split("\r\n");
  const headers = new Headers(
    lines.map((line): [string, string] => [line.split(": ")[0]!, line.split(": ")[1]!]),
  );
  const request = { path: first!.split(" ")[1]!, headers };
  server.requests.push(request);
  const { status = 200, headers: own = {}, body = new Uint8Array(), cut = body.length, silent } = answer(
    request,
    server.requests.length,
  );
  if (silent) return await new Promise((resolve) => setTimeout(resolve, 300));
  const all = { "content-length": `${body.length}`, connection: "close", ...own };
  const text = Object.entries(all).filter(([, value]) => value !== "").map(([name, value]) =>
    `${name}: ${value}\r\n`
  );
  const writer = connection.writable.getWriter();
  await writer.write(new TextEncoder().encode(`HTTP/1.1 ${status} Said\r\n${text.join("")}\r\n`));
  await writer.write(body.subarray(0, cut));
  server.sent += Math.min(cut, body.length);
  writer.releaseLock();
}

/** The part of a file that a request asks for. */
export function ranged(file: Uint8Array, { headers }: Request, etag = '"v1"'): Answer {
  const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(headers.get("range")!)!;
  const body = file.subarray(Number(from), to === "" ? undefined : Number(to) + 1);
  const range = `bytes ${from}-${Number(from) + body.length - 1}/${file.length}`;
  return { status: 206, headers: { "content-range": range, etag }, body };
}
