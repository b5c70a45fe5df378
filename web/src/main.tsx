import "../../src/packlight/report/page.css";
import "./page.css";
import { render } from "preact";
import { App } from "./app";

render(<App />, document.getElementById("page")!);
