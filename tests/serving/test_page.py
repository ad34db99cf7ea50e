"""The page in real Chromium: what a person does with it, on the server that the other tests ask."""

import math
import shutil
import time

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver")
Keys = webdriver.Keys
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver")

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, "--lang=en-US", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": "en-US,en"})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, server):
    browser.set_window_size(1000, 900)
    browser.get(server)
    wait(browser, lambda: element(browser, "model").text == "toy")
    yield browser
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def wait(browser, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, browser.find_element("tag name", "body").text
        time.sleep(0.05)


def element(browser, name):
    return browser.find_element("id", name)


def put(browser, name, value):
    """Set a field of the settings, which may be folded away."""
    browser.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, str(value))


def tokens(browser, where="output"):
    return browser.find_elements("css selector", f"#{where} .token")


def generate(browser, prompt, **settings):
    for name, value in settings.items():
        put(browser, name, value)
    element(browser, "prompt").clear()
    element(browser, "prompt").send_keys(prompt)
    element(browser, "generate").click()
    wait(browser, lambda: element(browser, "generate").is_enabled())


def text_of(browser, where="output"):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", where)


def test_the_text_is_that_of_the_api(page, client):
    given = {"max_tokens": 12, "temperature": 0}
    expected = client.completions.create(model="toy", prompt="a rose", **given).choices[0].text
    generate(page, "a rose", **given)
    assert text_of(page) == "a rose" + expected
    assert element(page, "status").text.startswith("12 tokens in ")
    assert not element(page, "stop-button").is_enabled()


def test_candidates_of_a_token_are_shown_on_focus_and_on_hover(page, client):
    given = {"max_tokens": 6, "temperature": 0}
    logprobs = client.completions.create(model="toy", prompt="the rose", logprobs=5, **given).choices[0].logprobs
    generate(page, "the rose", **given)
    first = tokens(page)[0]
    box = element(page, "candidates")
    assert not box.is_displayed()
    page.execute_script("arguments[0].focus()", first)
    assert box.is_displayed()
    shown = [row.text.rpartition(" %")[0].split()[-1] for row in box.find_elements("tag name", "tr")]
    expected = sorted(logprobs.top_logprobs[0].values(), reverse=True)
    assert [float(value) for value in shown] == pytest.approx([100 * math.exp(value) for value in expected], abs=0.06)
    page.execute_script("arguments[0].blur()", first)
    assert not box.is_displayed()
    webdriver.ActionChains(page).move_to_element(tokens(page)[1]).perform()
    assert box.is_displayed()


def test_text_streams_and_stops_by_the_keyboard(page):
    """Ctrl+Enter begins, Esc ends; the server's place is free again at once."""
    for name, value in {"max_tokens": 120, "temperature": 1, "top_k": 0, "top_p": 1}.items():
        put(page, name, value)
    page.execute_script(  # every event is slowed down, so that there is something to stop
        "const read = ReadableStreamDefaultReader.prototype.read;"
        "ReadableStreamDefaultReader.prototype.read = async function () {"
        "  await new Promise((done) => setTimeout(done, 50)); return read.call(this); };"
        "window.restore = () => { ReadableStreamDefaultReader.prototype.read = read; };"
    )
    element(page, "prompt").clear()
    element(page, "prompt").send_keys("a rose", Keys.CONTROL, Keys.ENTER)
    wait(page, lambda: len(tokens(page)) >= 3)
    element(page, "prompt").send_keys(Keys.ESCAPE)
    wait(page, lambda: element(page, "status").text.startswith("stopped"))
    assert len(tokens(page)) < 120
    page.execute_script("window.restore()")
    generate(page, "a rose", max_tokens=4)
    assert element(page, "status").text.startswith("4 tokens in ")


def test_parts_of_a_character_are_shown_as_the_character(page):
    element(page, "scored").clear()
    element(page, "scored").send_keys("你好, héllo 世")
    element(page, "measure").click()
    wait(page, lambda: element(page, "perplexity").text.startswith("perplexity"))
    assert text_of(page, "scored-output") == "你好, héllo 世"


def test_perplexity_is_that_of_the_logprobs(page, client):
    text = "a rose is a rose"
    logprobs = (
        client.completions.create(model="toy", prompt=text, echo=True, max_tokens=0, logprobs=0).choices[0].logprobs
    )
    values = [value for value in logprobs.token_logprobs if value is not None]
    element(page, "scored").clear()
    element(page, "scored").send_keys(text, Keys.CONTROL, Keys.ENTER)
    wait(page, lambda: element(page, "perplexity").text.startswith("perplexity"))
    number, count = element(page, "perplexity").text.removeprefix("perplexity ").rstrip(" tokens)").split(" (")
    assert float(number) == pytest.approx(math.exp(-sum(values) / len(values)), rel=1e-3)
    assert int(count) == len(values)
    assert {token.get_attribute("data-surprise") for token in tokens(page, "scored-output")} <= set("01234")


@pytest.mark.parametrize("width", [360, 1000])
def test_nothing_is_wider_than_the_screen(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        page.execute_script("document.querySelector('details').open = true")
        generate(page, "rose " * 8 + "r" * 70, max_tokens=20)
        page.execute_script("arguments[0].focus()", tokens(page)[-1])
        assert element(page, "candidates").is_displayed()
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_markup_in_a_text_is_text(page):
    generate(page, "<img src=x onerror=document.title='changed'>", max_tokens=2)
    assert text_of(page).startswith("<img src=x")
    assert page.title == "mindgpt"


def test_a_refusal_of_the_server_is_shown(browser, server):
    browser.get(server)
    generate(browser, "a rose", temperature=-1)
    assert "temperature" in element(browser, "problem").text


def test_the_key_is_asked_for_and_kept(browser, strict):
    with strict(api_key="secret") as url:
        browser.get(url)
        wait(browser, lambda: element(browser, "key").is_displayed())
        assert "key" in element(browser, "problem").text
        element(browser, "key").send_keys("secret", Keys.ENTER)
        wait(browser, lambda: element(browser, "model").text == "toy")
        assert not element(browser, "key").is_displayed() and not element(browser, "problem").is_displayed()
        generate(browser, "a rose", max_tokens=3)
        assert len(tokens(browser)) >= 1
        browser.refresh()
        wait(browser, lambda: element(browser, "model").text == "toy")


def test_a_server_that_is_gone_is_named(browser, strict):
    with strict() as url:
        browser.get(url)
        wait(browser, lambda: element(browser, "model").text == "toy")
    generate(browser, "a rose")
    assert "cannot be reached" in element(browser, "problem").text
    assert element(browser, "generate").is_enabled()


def test_chinese_browsers_get_chinese(browser, server):
    browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": "Object.defineProperty(navigator, 'languages', {get: () => ['zh-CN', 'en']})"},
    )
    browser.get(server)
    wait(browser, lambda: element(browser, "model").text == "toy")
    assert element(browser, "generate").text == "生成"
    assert browser.execute_script("return document.documentElement.lang") == "zh-Hans"
    untranslated = browser.execute_script(
        "return [...document.querySelectorAll('[data-text]')].filter((one) => !one.textContent).length"
    )
    assert untranslated == 0
