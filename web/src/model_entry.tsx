// The first step: a model, dropped or named by its path.
import { useState } from "preact/hooks";
import { type Refused, asRefused, openModel, sendModel, sendModelData } from "./api";
import { Drop } from "./drop";
import type { Given } from "./dropped";
import { PathEntry } from "./path_entry";
import { Problem } from "./problem";
import { go } from "./route";
import type { About, Model } from "./shapes";
import { checkSize } from "./upload_limit";

export function ModelEntry({ about }: { about: About }) {
  const [sent, setSent] = useState<number | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  // A model that names other files waits for them.
  const [waiting, setWaiting] = useState<string | null>(null);

  const arrive = (model: Model) => go({ screen: "model", id: model.id });

  const take = async (given: Given[]) => {
    setError(null);
    setSent(0);
    let id = waiting;
    let missing: Refused | null = null;
    // The model itself comes first, so that the rest has a place to go to.
    const ordered = given
      .map(({ file }) => file)
      .sort((a, b) => Number(b.name.endsWith(".onnx")) - Number(a.name.endsWith(".onnx")));
    for (const file of ordered) {
      try {
        checkSize(file, about, "model");
        const isModel = id === null || file.name.endsWith(".onnx");
        const model = await (isModel
          ? sendModel(file, setSent)
          : sendModelData(id as string, file, setSent));
        arrive(model);
        return;
      } catch (found) {
        missing = asRefused(found);
        if (!missing.id) break;
        id = missing.id;
      }
    }
    setWaiting(id);
    setError(missing);
    setSent(null);
  };

  return (
    <>
      <Drop
        id="model"
        accept={waiting ? "" : ".onnx,.data,.bin,.weights"}
        multiple
        error={error}
        sent={sent}
        onFiles={take}
      >
        <strong>{waiting ? "Drop the missing files here" : "Drop your model here"}</strong>
        <span>or choose a file: .onnx, with the files of weights that belong to it</span>
      </Drop>
      <Problem id="model-problem" error={error} />
      {about.paths && (
        <PathEntry
          id="model-path"
          label="Or type where it lies on this machine"
          example="/home/me/net.onnx"
          onPath={async (path) => arrive(await openModel(path))}
        />
      )}
    </>
  );
}
