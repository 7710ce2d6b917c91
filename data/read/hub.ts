// Datasets and models on the Hugging Face hub: what hf:// means, which files there are, and where the token may go.
import { UserError } from "../../base/errors.ts";

/** A file, a directory or a pattern in a dataset on the hub. */
export type HubPath = {
  /** OWNER/NAME */
  dataset: string;
  /** Branch, tag or commit. */
  revision: string;
  /** In the dataset; "" for all of it. */
  path: string;
};

/**
 * The parts of hf://datasets/OWNER/NAME@REVISION/PATH. Without a revision it is main. Throws UserError for hf:// and
 * something else.
 */
export function parseHubUrl(url: string): HubPath {
  const match = /^hf:\/\/datasets\/([^/@]+\/[^/@]+)(?:@(refs\/\w+\/[^/]+|[^/]+))?\/(.*)$/.exec(url);
  if (match === null) {
    throw new UserError(
      `Cannot read "${url}": it should be like hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH`,
    );
  }
  const [, dataset, revision = "main", path] = match;
  return { dataset: dataset!, revision, path: path! };
}

/**
 * Where the hub is: huggingface.co, or what HF_ENDPOINT says. Throws UserError if that is no address of http or
 * https.
 */
export function hubEndpoint(): string {
  const endpoint = Deno.env.get("HF_ENDPOINT") || "https://huggingface.co";
  if (/^https?:\/\//.test(endpoint) && URL.canParse(endpoint)) return endpoint.replace(/\/+$/, "");
  throw new UserError(
    `Cannot find the hub: HF_ENDPOINT is "${endpoint}", should be an address such as https://huggingface.co`,
  );
}

/** Whether the hub itself answers at an address. */
export function isHub(url: string): boolean {
  return new URL(url).origin === new URL(hubEndpoint()).origin;
}

/** The headers that show HF_TOKEN to the hub; none for any other server, in particular those that the hub redirects to. */
export function credentials(url: string): Record<string, string> {
  const token = Deno.env.get("HF_TOKEN");
  return token && isHub(url) ? { authorization: `Bearer ${token}` } : {};
}

/** The address of a file. */
export function hubFileUrl({ dataset, revision, path }: HubPath): string {
  return `${hubEndpoint()}/datasets/${dataset}/resolve/${encodeURIComponent(revision)}/${encoded(path)}`;
}

/** A path in an address, where ? and # would end it. */
function encoded(path: string): string {
  return encodeURI(path).replace(/[?#]/g, encodeURIComponent);
}

/** The address of a list of all files below a directory. */
export function hubListUrl({ dataset, revision, path }: HubPath): string {
  const tree = `${hubEndpoint()}/api/datasets/${dataset}/tree/${encodeURIComponent(revision)}`;
  return `${tree}${path === "" ? "" : `/${encodeURIComponent(path)}`}?recursive=true`;
}

// ---- models

/** A model on the hub. */
export type HubModel = {
  name: string; // OWNER/NAME
  revision: string; // branch, tag or commit
};

/** The parts of hf://OWNER/NAME@REVISION. Without a revision it is main. Throws UserError for hf:// and something else. */
export function parseModelUrl(url: string): HubModel {
  const match = /^hf:\/\/(?!datasets\/|spaces\/)([\w.-]+\/[\w.-]+)(?:@(refs\/\w+\/[\w.-]+|[\w.-]+))?$/.exec(
    url,
  );
  if (match === null || /(^|\/)\.+(\/|$)/.test(match[1]!)) {
    throw new UserError(
      `Cannot read "${url}": it should be like hf://OWNER/NAME or hf://OWNER/NAME@REVISION`,
    );
  }
  return { name: match[1]!, revision: match[2] ?? "main" };
}

/** The address of a file of a model. */
export function modelFileUrl({ name, revision }: HubModel, path: string): string {
  return `${hubEndpoint()}/${name}/resolve/${encodeURIComponent(revision)}/${encoded(path)}`;
}

/** The address of what the hub says of a model, such as the commit that a revision stands for. */
export function modelInfoUrl({ name, revision }: HubModel): string {
  return `${hubEndpoint()}/api/models/${name}/revision/${encodeURIComponent(revision)}`;
}

/** The address of a list of the files of a model. */
export function modelListUrl({ name, revision }: HubModel): string {
  return `${hubEndpoint()}/api/models/${name}/tree/${encodeURIComponent(revision)}`;
}
