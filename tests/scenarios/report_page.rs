//! The report's web page in a real browser, at the width of a phone and of a desk.

use std::path::Path;
use std::process::Command;

use repo_tests::cli::{cairn, run};
use serde_json::Value;

use crate::report::{HOSTILE_VM, nine_days, report};

/// Chromium without a window, on a file.
pub(crate) fn chromium(profile: &Path, file: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-extensions",
            "--virtual-time-budget=3000",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .env("HOME", profile)
        .args(arguments)
        .arg(format!("file://{}", file.display()));
    run(&mut command).stdout
}

/// A page that shows `page` in a frame of that size, measures it, and says what it found.
fn harness(page: &str, width: u32, height: u32) -> String {
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        "<!DOCTYPE html><html><body style=\"margin:0\">\
         <iframe id=\"frame\" style=\"border:0;width:{width}px;height:{height}px\" srcdoc=\"{page}\"></iframe>\
         <pre id=\"found\"></pre><script>{MEASURE}</script></body></html>"
    )
}

const MEASURE: &str = r#"
frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const all = (selector, take) => [...page.querySelectorAll(selector)].map(take);
    const width = frame.clientWidth;
    const found = {
        width: root.clientWidth,
        scroll: root.scrollWidth,
        outside: all('.tile, figure, section, svg, h1, header', e => e.getBoundingClientRect().right).filter(r => r > width + 0.5).length,
        scripts: all('script, link, img, iframe, object', e => e.tagName),
        charts: all('figure', e => [e.id, e.querySelectorAll('svg').length, e.getBoundingClientRect().width > 300]),
        lines: all('polyline', e => e.points.length),
        policies: all('#policies .bar', e => +e.dataset.value),
        biggest: all('#biggest .bar', e => [+e.dataset.value, e.querySelector('title').textContent]),
        tiles: all('.tile .big', e => e.dataset.value),
        vdis: all('#vdis tbody tr', e => [...e.children].map(c => c.dataset.value ?? c.textContent)),
        accounting: all('#accounting tbody tr', e => +e.lastElementChild.textContent),
        smallest: Math.min(...all('svg text, td, p', e => e.tagName === 'text'
            ? parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width
            : parseFloat(getComputedStyle(e).fontSize))),
        ink: frame.contentWindow.getComputedStyle(page.body).color,
        paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
    document.getElementById('found').textContent =
        JSON.stringify(found).replace(/[<>&]/g, c => '\\u00' + c.charCodeAt(0).toString(16));
};
"#;

fn found(dom: &[u8]) -> Value {
    let dom = String::from_utf8_lossy(dom);
    let start = dom.find("<pre id=\"found\">").expect("the harness ran") + 16;
    let end = start + dom[start..].find("</pre>").expect("the element is closed");
    serde_json::from_str(&dom[start..end]).unwrap_or_else(|error| panic!("{error}: {}", &dom[start..end]))
}

fn png_size(bytes: &[u8]) -> (u32, u32) {
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_browser_shows_the_charts_and_the_numbers_of_the_json_on_a_phone_and_a_desk() {
    let fixture = nine_days();
    let folder = fixture.folder.path();
    let out = report(&fixture.path(), &["--capacity", "1GiB"]);
    let page_file = folder.join("report.html");
    run(cairn(&fixture.path()).args(["report", "--capacity", "1GiB", "--html"]).arg(&page_file));
    let page = std::fs::read_to_string(&page_file).unwrap();
    assert!(!page.contains("<script"), "{page}");

    for (width, height) in [(390, 844), (1280, 900)] {
        let file = folder.join(format!("harness-{width}.html"));
        std::fs::write(&file, harness(&page, width, height)).unwrap();
        let found = found(&chromium(folder, &file, &["--window-size=1400,1000", "--dump-dom"]));
        assert_eq!((&found["width"], &found["scroll"]), (&width.into(), &width.into()), "{found}");
        assert_eq!((&found["outside"], &found["scripts"]), (&0.into(), &serde_json::json!([])), "{found}");
        let charts =
            serde_json::json!([["growth", 1, true], ["ratio", 1, true], ["biggest", 1, true], ["policies", 1, true]]);
        assert_eq!(found["charts"], charts);
        assert_eq!(found["lines"], serde_json::json!([9, 9]));
        assert!(found["smallest"].as_f64().unwrap() > 9.5, "{}", found["smallest"]);
        same_numbers(&found, &out);
    }

    // Light or dark as the reader's system is set.
    let file = folder.join("harness-390.html");
    let dark = ["--dump-dom", "--blink-settings=preferredColorScheme=0"];
    let (light, dark) = (found(&chromium(folder, &file, &["--dump-dom"])), found(&chromium(folder, &file, &dark)));
    assert_eq!((&light["paper"], &dark["paper"]), (&"rgb(246, 245, 242)".into(), &"rgb(21, 24, 28)".into()));
    assert_ne!(light["ink"], dark["ink"]);

    let shot = folder.join("desk.png");
    chromium(folder, &page_file, &["--window-size=1280,1700", &format!("--screenshot={}", shot.display())]);
    let desk = std::fs::read(&shot).unwrap();
    assert_eq!(png_size(&desk), (1280, 1700));
    let shot = folder.join("phone.png");
    let file = folder.join("harness-390.html");
    chromium(folder, &file, &["--window-size=390,844", &format!("--screenshot={}", shot.display())]);
    assert!(desk.len() > 50_000 && std::fs::read(&shot).unwrap().len() > 15_000, "pages with something on them");
    if let Some(keep) = std::env::var_os("CAIRN_KEEP_PAGES") {
        let keep = Path::new(&keep);
        for name in ["desk.png", "phone.png", "report.html", "harness-390.html"] {
            std::fs::copy(folder.join(name), keep.join(name)).unwrap();
        }
    }
}

fn same_numbers(found: &Value, out: &Value) {
    let repository = &out["repository"];
    let tile = |value: &Value| value.to_string();
    let tiles = [
        &repository["allocated_bytes"],
        &repository["total_bytes"],
        &repository["total"],
        &out["forecast"]["days_left"],
    ];
    assert_eq!(found["tiles"], serde_json::json!(tiles.map(tile)));
    let freed: Vec<_> = out["policies"].as_array().unwrap().iter().map(|row| &row["freed_bytes"]).collect();
    assert_eq!(found["policies"], serde_json::json!(freed));

    let vdis = out["vdis"].as_array().unwrap();
    let mut stored: Vec<u64> = vdis.iter().map(|row| row["stored_bytes"].as_u64().unwrap()).collect();
    stored.sort_unstable_by(|one, other| other.cmp(one));
    let bars = found["biggest"].as_array().unwrap();
    assert_eq!(bars.iter().map(|bar| bar[0].as_u64().unwrap()).collect::<Vec<_>>(), stored);
    // The name that looks like an element is text, whole.
    assert!(bars.iter().any(|bar| bar[1].as_str().unwrap().starts_with(&format!("{HOSTILE_VM}: "))), "{bars:?}");

    for (row, vdi) in found["vdis"].as_array().unwrap().iter().zip(vdis) {
        let (vm, name) = (vdi["vm"].as_str().unwrap(), vdi["vdi"].as_str().unwrap());
        assert_eq!(row[0], format!("{vm}: {name}"));
        for (at, field) in
            [(1, "snapshots"), (2, "newest_virtual_bytes"), (4, "new_bytes"), (5, "stored_bytes"), (9, "unique_bytes")]
        {
            assert_eq!(row[at].as_str().unwrap(), vdi[field].to_string(), "{field}");
        }
    }
    let accounting: Vec<u64> =
        found["accounting"].as_array().unwrap().iter().map(|row| row.as_u64().unwrap()).collect();
    let (sum, parts) = accounting.split_last().unwrap();
    assert_eq!((parts.iter().sum::<u64>(), &Value::from(*sum)), (*sum, &repository["total_bytes"]));
}
