// Tells in the editor which runs were stopped, and goes on with one. Served beside ComfyUI's front end.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

async function stopped() {
  const answer = await api.fetchApi("/resume");
  return answer.ok ? (await answer.json()).runs : [];
}

function tell(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 12000 });
}

async function resume() {
  const runs = await stopped();
  if (!runs.length) return tell("info", "No run was stopped", "");
  const run = runs.reverse().find((r) => window.confirm(`Go on with ${r.run_dir}?`));
  if (!run) return;
  const body = JSON.stringify({ prompt_id: run.prompt_id });
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/resume", { method: "POST", headers, body });
  tell(answer.ok ? "success" : "error", run.run_dir, answer.ok ? "goes on" : await answer.text());
}

app.registerExtension({
  name: "sr_pipeline.resume",
  commands: [{ id: "sr_pipeline.resume", label: "Go on with a stopped run", function: resume }],
  menuCommands: [{ path: ["sr_pipeline"], commands: ["sr_pipeline.resume"] }],
  async setup() {
    const runs = await stopped();
    if (runs.length) {
      const names = runs.map((r) => r.run_dir).join(", ");
      tell("info", "Stopped runs", `${names}: the menu's sr_pipeline goes on with one`);
    }
  },
});
