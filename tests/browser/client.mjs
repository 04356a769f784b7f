// Runs a graph to its end with @stable-canvas/comfyui-client, and fetches its picture.
import { readFileSync, writeFileSync } from "node:fs";
import { Client } from "@stable-canvas/comfyui-client";
import WebSocket from "ws";

const [host, way, graph, picture] = process.argv.slice(2);
const client = new Client({ api_host: host, WebSocket, fetch });
client.connect();
try {
  const result = await client[way](JSON.parse(readFileSync(graph, "utf8")));
  const [image] = result.images;
  const bytes = image.type === "buff" ? image.data : await (await fetch(image.data)).arrayBuffer();
  writeFileSync(picture, Buffer.from(bytes));
  const nodes = Object.keys(await client.getNodeDefs()).length;
  console.log(JSON.stringify({ prompt_id: result.prompt_id, images: result.images.length, nodes }));
} finally {
  client.close();
}
