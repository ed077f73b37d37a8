// Calls of OpenAI's npm client, told in JSON on standard input; what comes of them is printed in JSON lines.
//
//   node openai.mjs PACKAGE BASE_URL < [{"method": "images.edit", "body": {...}, "options": {...}, "raw": true}, ...]
//
// In a body, {"file": PATH, "as": "buffer" | "nameless" | "stream", "name", "type"} stands for an upload. A line has the
// place of its "call" and "answer", "event", "item", or the "error" that was thrown; with "raw" also "status" and "headers".
import fs from "node:fs";

const [name, baseURL] = process.argv.slice(2);
const { default: OpenAI, toFile } = await import(name);
const client = new OpenAI({ apiKey: "none", maxRetries: 0, baseURL });

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

async function make({ method, body, options, raw }, say) {
  const path = method.split(".");
  const last = path.pop();
  const room = path.reduce((found, step) => found[step], client);
  if (last === "list") {
    for await (const item of room.list()) say({ item });
    return;
  }
  let said = body;
  if (typeof body !== "string") {
    said = {};
    for (const [key, value] of Object.entries(body)) said[key] = await filled(value);
  }
  const asked = room[last](said, options);
  if (raw) {
    const { data, response, request_id } = await asked.withResponse();
    say({ status: response.status, headers: Object.fromEntries(response.headers), request_id, answer: data });
  } else if (said.stream) {
    for await (const event of await asked) say({ event });
  } else {
    const answer = await asked;
    say({ answer, request_id: answer._request_id });
  }
}

for (const [call, told] of JSON.parse(fs.readFileSync(0, "utf8")).entries()) {
  const say = (line) => console.log(JSON.stringify({ call, ...line }));
  try {
    await make(told, say);
  } catch (error) {
    const kinds = Object.keys(OpenAI).filter((kind) => kind.endsWith("Error") && error instanceof OpenAI[kind]);
    const { status, code, param, type, message, requestID } = error;
    say({ error: { kinds, status, code, param, type, message, id: requestID } });
  }
}
