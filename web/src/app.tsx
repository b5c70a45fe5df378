// The frame of every screen, and which one is shown.
import { useEffect, useState } from "preact/hooks";
import { type Refused, asRefused, readAbout } from "./api";
import { CompareScreen } from "./compare_screen";
import { JobScreen } from "./job_screen";
import { ModelScreen } from "./model_screen";
import { Problem } from "./problem";
import { type Route, useRoute } from "./route";
import { RunsScreen } from "./runs_screen";
import type { About } from "./shapes";
import { StartScreen } from "./start_screen";

function Screen({ route, about }: { route: Route; about: About }) {
  switch (route.screen) {
    case "start":
      return <StartScreen about={about} />;
    case "model":
      return <ModelScreen key={route.id} id={route.id} about={about} />;
    case "job":
      return <JobScreen key={route.id} id={route.id} />;
    case "runs":
      return <RunsScreen />;
    case "compare":
      return <CompareScreen ids={route.ids} />;
  }
}

export function App() {
  const route = useRoute();
  const [about, setAbout] = useState<About | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  useEffect(() => {
    readAbout().then(setAbout, (found: unknown) => setError(asRefused(found)));
  }, []);
  const current = (screen: Route["screen"]) =>
    route.screen === screen ? { "aria-current": "page" as const } : {};
  return (
    <>
      <button
        type="button"
        class="skip"
        onClick={() => document.querySelector<HTMLElement>("main h1")?.focus()}
      >
        Skip to the content
      </button>
      <header>
        <a class="brand" href="#/">
          packlight
        </a>
        <nav aria-label="Pages">
          <a href="#/" {...current("start")}>
            New
          </a>
          <a href="#/runs" {...current("runs")}>
            Runs
          </a>
        </nav>
      </header>
      <main>
        <Problem id="page-problem" error={error} />
        {about && <Screen route={route} about={about} />}
      </main>
      <footer>
        packlight {about?.version} on this machine: nothing is sent anywhere else, and nothing is
        loaded from elsewhere.
      </footer>
    </>
  );
}
