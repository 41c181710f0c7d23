// Completes the OpenAPI document that protoc-gen-openapiv3 makes of the contract: standard input to
// standard output.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"regexp"
	"strings"
)

type object = map[string]any

// Answers of the gateway besides 200. Tools check the codes of responses only without `default`.
var errorCodes = strings.Fields("400 401 403 404 405 409 413 415 429 431 499 500 501 503 504")

// A path parameter within the body's resource, such as {user.username}.
var nested = regexp.MustCompile(`\{[a-z_]+\.([a-z_]+)\}`)

func main() {
	var document object
	if err := json.NewDecoder(os.Stdin).Decode(&document); err != nil {
		log.Fatal(err)
	}
	if err := complete(document); err != nil {
		log.Fatal(err)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(document); err != nil {
		log.Fatal(err)
	}
}

func complete(document object) error {
	document["info"] = object{
		"title":       "Account service",
		"description": "Users, organizations and memberships.",
		"version":     "1.0.0",
		"license":     object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
	}
	document["servers"] = []any{object{"url": "/"}}
	document["security"] = []any{object{}, object{"token": []any{}}}
	components, ok := document["components"].(object)
	if !ok {
		return fmt.Errorf("the document has no components")
	}
	components["securitySchemes"] = object{"token": object{"type": "http", "scheme": "bearer"}}
	components["responses"] = object{"Error": object{
		"description": "An error, with its details.",
		"content":     object{"application/json": object{"schema": object{"$ref": "#/components/schemas/google.rpc.Status"}}},
	}}
	paths, ok := document["paths"].(object)
	if !ok {
		return fmt.Errorf("the document has no paths")
	}
	merged := object{}
	for path, item := range paths {
		path = nested.ReplaceAllString(path, "{$1}")
		into, ok := merged[path].(object)
		if !ok {
			into = object{}
			merged[path] = into
		}
		for method, operation := range item.(object) {
			into[method] = operation
			completeOperation(operation.(object))
		}
	}
	document["paths"] = merged
	return nil
}

func completeOperation(operation object) {
	responses := operation["responses"].(object)
	delete(responses, "default")
	for _, code := range errorCodes {
		responses[code] = object{"$ref": "#/components/responses/Error"}
	}
	parameters, _ := operation["parameters"].([]any)
	isUpdate := false
	for _, parameter := range parameters {
		parameter := parameter.(object)
		name := parameter["name"].(string)
		if parameter["in"] == "path" {
			parameter["name"] = name[strings.LastIndex(name, ".")+1:]
			parameter["schema"].(object)["minLength"] = 1
		}
		isUpdate = isUpdate || name == "updateMask"
	}
	if isUpdate {
		operation["parameters"] = append(parameters, object{
			"name":        "etag",
			"in":          "query",
			"description": "The version to change, if it is not in the body.",
			"schema":      object{"type": "string"},
		})
	}
}
