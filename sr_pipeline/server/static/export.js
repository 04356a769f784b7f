// Puts what each node remembers of our graph into what the editor posts and exports, so that Export (API) loses no id.
import { app } from "../../scripts/app.js";

// A node by its id; 12:3 is node 3 of the subgraph that node 12 stands for.
function nodeAt(id) {
  let node = null;
  let graph = app.rootGraph;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

app.registerExtension({
  name: "sr_pipeline.export",
  setup() {
    const made = app.graphToPrompt.bind(app);
    app.graphToPrompt = async (...given) => {
      const prompt = await made(...given);
      for (const [id, entry] of Object.entries(prompt.output)) {
        entry._meta = { ...entry._meta, sr_pipeline: nodeAt(id)?.properties?.sr_pipeline ?? {} };
      }
      return prompt;
    };
  },
});
