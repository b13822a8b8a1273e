// Command payments is the sample backend as a program of its own, for the examples.
package main

import (
	"flag"
	"log"
	"net/http"
	"os"

	"github.com/example/traefik-idem/e2e/internal/payments"
)

func main() {
	listen := flag.String("listen", ":8000", "serve at this `address`")
	flag.Parse()
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	log.Fatal(http.ListenAndServe(*listen, payments.Handler()))
}
