"""Take the pictures of the server's page: `make_page.py http://localhost:8000`.

The server is `keras-gpt serve smollm2`. It needs Chromium, chromedriver and selenium.
"""

import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PROMPT = "The capital of France is"


def main():
    """Write `page_tokens.png`, in light, and `page_attention.png`, in dark."""
    folder = Path(__file__).parent
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    # without a path selenium would look for one on the internet
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as browser:
        wait = WebDriverWait(browser, 60)

        def find(selector):
            return wait.until(
                lambda _: browser.find_elements(By.CSS_SELECTOR, selector)
            )[0]

        def click(selector):
            element = find(selector)
            wait.until(lambda _: element.is_displayed())
            browser.execute_script("arguments[0].click()", element)

        def choose_colours(name):
            feature = {"name": "prefers-color-scheme", "value": name}
            command = "Emulation.setEmulatedMedia"
            browser.execute_cdp_cmd(command, {"features": [feature]})

        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1120, "height": 780, "deviceScaleFactor": 1, "mobile": False},
        )
        choose_colours("light")
        browser.get(sys.argv[1])
        click("[data-mode=prompt]")
        find("#seed").send_keys("7")
        find("#max_tokens").clear()
        find("#max_tokens").send_keys("60")
        find("#prompt").send_keys(PROMPT, Keys.ENTER)
        click(".of-prompt .bar button:nth-of-type(1)")
        find(".alternatives li")
        browser.execute_script("scrollTo(0, 0)")
        browser.save_screenshot(str(folder / "page_tokens.png"))
        choose_colours("dark")
        click(".of-prompt .bar button:nth-of-type(2)")
        find(".heads canvas")
        browser.execute_script("scrollTo(0, 0)")
        browser.save_screenshot(str(folder / "page_attention.png"))


if __name__ == "__main__":
    main()
