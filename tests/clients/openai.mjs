// One call of OpenAI's npm client, told in JSON on standard input; what comes of it is printed in JSON lines.
//
//   node openai.mjs PACKAGE BASE_URL < {"method": "images.edit", "body": {...}, "options": {...}}
//
// In the body, {"file": PATH, "as": "buffer" | "nameless" | "stream", "name", "type"} stands for an upload. The lines are
// {"answer"}, {"event"} or {"item"} each, and {"error"} where the call throws; with "raw" also {"status", "headers"}.
import fs from "node:fs";

const [name, baseURL] = process.argv.slice(2);
const { default: OpenAI, toFile } = await import(name);
const { method, body, options, client: settings, raw } = JSON.parse(fs.readFileSync(0, "utf8"));

const say = (line) => console.log(JSON.stringify(line));

async function upload({ file, as, name, type }) {
  if (as === "stream") return fs.createReadStream(file);
  if (as === "nameless") return toFile(fs.readFileSync(file));
  return toFile(fs.readFileSync(file), name, type && { type });
}

async function filled(value) {
  if (Array.isArray(value)) return Promise.all(value.map(filled));
  if (value?.file) return upload(value);
  return value;
}

const said = {};
for (const [key, value] of Object.entries(body ?? {})) said[key] = await filled(value);

const client = new OpenAI({ apiKey: "none", maxRetries: 0, ...settings, baseURL });
const path = method.split(".");
const last = path.pop();
const room = path.reduce((found, step) => found[step], client);
const call = () => (typeof body === "string" ? room[last](body, options) : room[last](said, options));

try {
  if (raw) {
    const { data, response, request_id } = await call().withResponse();
    say({ status: response.status, headers: Object.fromEntries(response.headers), request_id, answer: data });
  } else if (said.stream) {
    for await (const event of await call()) say({ event });
  } else if (last === "list") {
    for await (const item of room.list()) say({ item });
  } else {
    const answer = await call();
    say({ answer, request_id: answer._request_id });
  }
} catch (error) {
  const kinds = Object.keys(OpenAI).filter((kind) => kind.endsWith("Error") && error instanceof OpenAI[kind]);
  const { status, code, param, type, message, requestID } = error;
  say({ error: { kinds, status, code, param, type, message, id: requestID } });
}
